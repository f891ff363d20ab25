//! The shim by itself, for the tests and benchmarks of this crate; users have it inside `staithe`.

fn main() {
    container::shim_main(std::env::args_os().skip(1))
}
