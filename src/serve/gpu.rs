//! What NVIDIA's management library tells of the GPU that computes; nothing of a server that computes elsewhere, and
//! in a build without the feature `gpu-metrics`.

/// The gauges: name, and what it says. Each has the label `gpu`, its number or its UUID.
#[cfg(any(test, feature = "gpu-metrics"))]
const GAUGES: [(&str, &str); 5] = [
    ("delo_gpu_utilization_ratio", "Share of the last second or less in which the GPU computed."),
    ("delo_gpu_memory_used_bytes", "Memory of the GPU that is taken, by all processes."),
    ("delo_gpu_memory_total_bytes", "Memory of the GPU."),
    ("delo_gpu_power_watts", "Power that the GPU takes."),
    ("delo_gpu_temperature_celsius", "Temperature of the GPU."),
];

/// How NVIDIA's management library names a GPU.
#[cfg(any(test, feature = "gpu-metrics"))]
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Index(u32),
    Uuid(String),
}

#[cfg(any(test, feature = "gpu-metrics"))]
impl Name {
    /// Of the GPU in a kernel's name, `bf16 cuda:0`. `visible`: the variable CUDA_VISIBLE_DEVICES, by which CUDA counts.
    fn of(kernel: &str, visible: Option<&str>) -> Option<Self> {
        let ordinal: usize = kernel.rsplit_once("cuda:")?.1.parse().ok()?;
        let name = match visible.filter(|list| !list.is_empty()) {
            None => return Some(Self::Index(u32::try_from(ordinal).ok()?)),
            Some(list) => list.split(',').nth(ordinal)?.trim(),
        };
        Some(name.parse().map_or_else(|_| Self::Uuid(name.to_owned()), Self::Index))
    }
}

#[cfg(feature = "gpu-metrics")]
pub use nvidia::Gpu;

#[cfg(feature = "gpu-metrics")]
mod nvidia {
    use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
    use nvml_wrapper::{Device, Nvml};

    use super::{GAUGES, Name};

    /// The GPU that computes, if one does.
    #[derive(Debug)]
    pub struct Gpu(Option<(Nvml, Name)>);

    impl Gpu {
        /// By the name of the engine's kernel.
        pub fn of(kernel: &str) -> Self {
            let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
            let Some(name) = Name::of(kernel, visible.as_deref()) else { return Self(None) };
            match Nvml::init() {
                Ok(nvml) => {
                    for (gauge, help) in GAUGES {
                        metrics::describe_gauge!(gauge, help);
                    }
                    Self(Some((nvml, name)))
                }
                Err(error) => {
                    tracing::warn!(%error, "there are no metrics of the GPU: NVIDIA's management library (libnvidia-ml) can't be used");
                    Self(None)
                }
            }
        }

        /// Records its state of this moment; what the GPU does not tell is left out.
        pub fn record(&self) {
            let Some((nvml, name)) = &self.0 else { return };
            let (device, label) = match name {
                Name::Index(index) => (nvml.device_by_index(*index), index.to_string()),
                Name::Uuid(uuid) => (nvml.device_by_uuid(uuid.as_str()), uuid.clone()),
            };
            let Ok(device) = device else { return };
            for ((gauge, _), value) in GAUGES.into_iter().zip(state(&device)) {
                if let Some(value) = value {
                    metrics::gauge!(gauge, "gpu" => label.clone()).set(value);
                }
            }
        }
    }

    /// The values of [`GAUGES`], in their order.
    fn state(device: &Device<'_>) -> [Option<f64>; 5] {
        let memory = device.memory_info().ok();
        [
            device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
            memory.as_ref().map(|memory| memory.used as f64),
            memory.as_ref().map(|memory| memory.total as f64),
            device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
            device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
        ]
    }
}

/// In a build without the feature: nothing.
#[cfg(not(feature = "gpu-metrics"))]
#[derive(Debug)]
pub struct Gpu;

#[cfg(not(feature = "gpu-metrics"))]
impl Gpu {
    pub fn of(_kernel: &str) -> Self {
        Self
    }

    pub fn record(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_is_the_one_that_cuda_counts() {
        assert_eq!(Name::of("bf16 amx", None), None);
        assert_eq!(Name::of("bf16 cuda:1", None), Some(Name::Index(1)));
        assert_eq!(Name::of("bf16 cuda:1", Some("3,2")), Some(Name::Index(2)));
        assert_eq!(Name::of("f32 cuda:0", Some("GPU-8932f937, 1")), Some(Name::Uuid("GPU-8932f937".to_owned())));
        assert_eq!(Name::of("f32 cuda:2", Some("0")), None);
    }

    #[test]
    fn the_documentation_names_each_gauge() {
        let documented = include_str!("../../deploy/METRICS.md");
        for (gauge, _) in GAUGES {
            assert!(documented.contains(&format!("`{gauge}`")), "{gauge}");
        }
    }
}
