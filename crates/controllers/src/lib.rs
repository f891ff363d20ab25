//! One file per controller: snapshot in, plan out
