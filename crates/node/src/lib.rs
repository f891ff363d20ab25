//! The agent: pods wanted and pods observed in, actions out; probes, volumes, logs, stats
