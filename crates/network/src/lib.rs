//! Pod network, Service load balancing in the kernel, DNS
