/// Runs every input of a target's corpus. Tests of the crates whose parsers are fuzzed include this file.
pub(crate) fn run(target: &str, read: fn(&[u8])) {
    let folder = format!("{}/../../tests/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|input| input.unwrap().path()).collect();
    assert!(!inputs.is_empty(), "no corpus for {target}");
    inputs.iter().for_each(|input| read(&std::fs::read(input).unwrap()));
}
