//! The container driver and its shim: namespaces, cgroups, overlay, seccomp
