//! The name of this machine's processor, which stands beside every time that is measured on it.

/// `model name` of the first processor where Linux says it, else the architecture.
pub(crate) fn name() -> String {
    let described = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = described.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name");
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
