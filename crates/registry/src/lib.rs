//! OCI distribution server over the artifact store
