//! HTTP: routing, negotiation, authn/z, admission, discovery, OpenAPI, Table, watch, streams
