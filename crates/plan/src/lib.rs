//! Pure planners: a snapshot in, a plan and its reasons out. No I/O, no clock, no chance.
