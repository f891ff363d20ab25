//! The container driver keeps the promises of a driver.

mod machine;

driver::conformance_suite!(machine::Machine::new());
