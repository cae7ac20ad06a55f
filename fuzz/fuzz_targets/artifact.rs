#![no_main]
use delo_fuzz::json::File;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| delo_fuzz::artifact(bytes));

// Every other mutation is one of the header's fields: those of single bytes mostly leave no JSON.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0
        && let Some(mut file) = File::parse(&data[..size])
    {
        file.mutate(seed / 2);
        let bytes = file.to_bytes();
        if bytes.len() <= max_size {
            data[..bytes.len()].copy_from_slice(&bytes);
            return bytes.len();
        }
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
});
