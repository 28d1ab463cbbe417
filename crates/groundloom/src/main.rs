//! The command line of Groundloom.

fn main() {}
