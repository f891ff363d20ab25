//! Content-addressed blobs, safe unpacking, image import and the OCI client
