//! The L7 router: Ingress, TLS, HTTP/1.1, HTTP/2, WebSocket; and the edge process that carries it
