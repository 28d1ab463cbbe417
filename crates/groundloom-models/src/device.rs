//! Where networks compute: the CPU, or an accelerator that this program was built for.
//!
//! Weights lie on the device, and what a layer is given is moved to its weights. Images, texts and sounds are prepared on
//! the CPU, and answers come back to it where their values are read. On the CPU the layers are this crate's own kernels,
//! elsewhere candle's operations, in f32 everywhere.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use candle_core::Tensor;

use crate::ModelError;

/// A place where networks compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU of NVIDIA, by its number from 0 on.
    Cuda(usize),
    /// A GPU of Apple, by its number from 0 on.
    Metal(usize),
}

impl Device {
    /// The cargo feature that builds this kind of device in; none for the CPU.
    pub fn feature(self) -> Option<&'static str> {
        match self {
            Self::Cpu => None,
            Self::Cuda(_) => Some("cuda"),
            Self::Metal(_) => Some("metal"),
        }
    }

    /// Whether this program was built for this kind of device.
    pub fn is_built_in(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda(_) => cfg!(feature = "cuda"),
            Self::Metal(_) => cfg!(feature = "metal"),
        }
    }

    /// The devices that can be used here, the CPU first.
    pub fn available() -> Vec<Self> {
        // Asked for a second GPU, Apple's driver panics where there is one.
        let accelerators = (0..).map(Self::Cuda).take_while(|device| device.connect().is_ok());
        let accelerators = accelerators.chain([Self::Metal(0)].into_iter().filter(|device| device.connect().is_ok()));
        std::iter::once(Self::Cpu).chain(accelerators).collect()
    }

    /// The device as candle knows it: one connection for the whole process, so that tensors of one device know each other
    /// as neighbours.
    ///
    /// # Errors
    /// [`ModelError::NotBuiltIn`], [`ModelError::NoDevice`].
    pub(crate) fn open(self) -> Result<candle_core::Device, ModelError> {
        if !self.is_built_in() {
            let (device, feature) = (self.to_string(), self.feature().unwrap_or_default());
            return Err(ModelError::NotBuiltIn { device, feature, available: listed() });
        }
        let missing = |reason| ModelError::NoDevice { device: self.to_string(), reason, available: listed() };
        self.connect().map_err(missing)
    }

    /// The reason for a failure is the driver's.
    fn connect(self) -> Result<candle_core::Device, String> {
        static OPEN: Mutex<BTreeMap<Device, candle_core::Device>> = Mutex::new(BTreeMap::new());
        if self == Self::Cpu {
            return Ok(candle_core::Device::Cpu);
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&self) {
            return Ok(device.clone());
        }
        let connect = || match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            // One stream for all threads: what they ask for is done in the order of asking, and weights that one thread has
            // sent are there when another looks.
            Self::Cuda(number) => candle_core::Device::new_cuda_with_stream(number),
            Self::Metal(number) => candle_core::Device::new_metal(number),
        };
        // Drivers that are not there, and numbers beyond the last device, may panic.
        let device = catch_unwind(AssertUnwindSafe(connect));
        let device = device.map_err(|_| "there is none of this number".to_owned())?.map_err(|e| e.to_string())?;
        open.insert(self, device.clone());
        Ok(device)
    }

    /// What decides the last bits of sums beside this program: the kind of device and, where the driver tells it, the model.
    fn hardware(self, opened: &candle_core::Device) -> String {
        let kind = self.feature().unwrap_or("cpu");
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = opened
            && let Ok(name) = device.cuda_stream().context().name()
        {
            return format!("{kind} ({name})");
        }
        #[cfg(feature = "metal")]
        if let candle_core::Device::Metal(device) = opened {
            return format!("{kind} ({})", device.metal_device().architecture_name());
        }
        let _ = opened;
        kind.to_owned()
    }
}

/// The available devices, for messages.
fn listed() -> String {
    Device::available().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal(number) => write!(f, "metal:{number}"),
        }
    }
}

/// A device as a user asks for it: one of them, or the best that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first accelerator that this program was built for and that is there, else the CPU. `auto`.
    Auto,
    /// This one. `cpu`, `cuda`, `cuda:1`, `metal`.
    This(Device),
}

impl Default for DeviceChoice {
    /// The CPU.
    fn default() -> Self {
        Self::This(Device::Cpu)
    }
}

impl DeviceChoice {
    /// The device that is meant, which is there.
    ///
    /// # Errors
    /// [`ModelError::NotBuiltIn`], [`ModelError::NoDevice`].
    pub fn device(self) -> Result<Device, ModelError> {
        match self {
            Self::Auto => {
                let first = [Device::Cuda(0), Device::Metal(0)].into_iter().find(|device| device.connect().is_ok());
                Ok(first.unwrap_or_default())
            }
            Self::This(device) => device.open().map(|_| device),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected cpu, cuda, cuda:NUMBER, metal, metal:NUMBER or auto, found {text:?}");
        let (kind, number) = match text.split_once(':') {
            None => (text, 0),
            // No sign, which `parse` would take.
            Some((kind, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                (kind, number.parse().map_err(|_| wrong())?)
            }
            Some(_) => return Err(wrong()),
        };
        match kind {
            "auto" | "cpu" if text.contains(':') => Err(wrong()),
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::This(Device::Cpu)),
            "cuda" => Ok(Self::This(Device::Cuda(number))),
            "metal" => Ok(Self::This(Device::Metal(number))),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::This(device) => device.fmt(f),
        }
    }
}

/// The devices that share the work of each model: at least one, all of them alike, so that it does not matter which of them
/// computes what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    all: Vec<Device>,
    hardware: Option<String>,
}

impl Default for Devices {
    /// The CPU.
    fn default() -> Self {
        Self { all: vec![Device::Cpu], hardware: None }
    }
}

impl Devices {
    /// The devices that `choices` mean; the CPU where there are none.
    ///
    /// # Errors
    /// [`ModelError::NotBuiltIn`] and [`ModelError::NoDevice`] for one that cannot be used, [`ModelError::UnlikeDevices`] for
    /// several that are not alike, or are one and the same.
    pub fn open(choices: &[DeviceChoice]) -> Result<Self, ModelError> {
        let all = choices.iter().map(|choice| choice.device()).collect::<Result<Vec<_>, _>>()?;
        let hardware = all.iter().map(|device| Ok(device.hardware(&device.open()?)));
        Self::of(all.clone(), hardware.collect::<Result<_, ModelError>>()?)
    }

    pub(crate) fn of(all: Vec<Device>, hardware: Vec<String>) -> Result<Self, ModelError> {
        let Some((first, others)) = hardware.split_first() else { return Ok(Self::default()) };
        let twice = (1..all.len()).find(|&i| all[..i].contains(&all[i]));
        if let Some(device) = twice.map(|i| all[i]) {
            return Err(ModelError::UnlikeDevices { found: format!("{device} twice") });
        }
        if others.iter().any(|other| other != first) {
            let found = all.iter().zip(&hardware).map(|(device, hardware)| match hardware.split_once(' ') {
                Some((_, name)) => format!("{device} {name}"),
                None => device.to_string(),
            });
            return Err(ModelError::UnlikeDevices { found: found.collect::<Vec<_>>().join(" and ") });
        }
        let hardware = (all != [Device::Cpu]).then(|| first.clone());
        Ok(Self { all, hardware })
    }

    /// All of them.
    pub fn all(&self) -> &[Device] {
        &self.all
    }

    /// What decides the last bits of what they compute, beside this program and the CPU: `cuda (NVIDIA H100)`. `None` for
    /// the CPU alone, whose own class does.
    pub fn hardware(&self) -> Option<&str> {
        self.hardware.as_deref()
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    }
}

/// A model by its name, and the device that its network is to compute on: the CPU where a name stands alone.
#[derive(Debug, Clone, Copy)]
pub struct ModelOn<'a> {
    pub(crate) name: &'a str,
    pub(crate) device: Device,
}

impl<'a> ModelOn<'a> {
    /// The model `name` on `device`.
    pub fn new(name: &'a str, device: Device) -> Self {
        Self { name, device }
    }
}

impl<'a> From<&'a str> for ModelOn<'a> {
    fn from(name: &'a str) -> Self {
        Self::new(name, Device::Cpu)
    }
}

impl<'a> From<&'a String> for ModelOn<'a> {
    fn from(name: &'a String) -> Self {
        Self::new(name, Device::Cpu)
    }
}

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with networks that compute on the CPU as they do on an accelerator: in candle's operations, which is how the two
/// are compared. It concerns what this thread loads and computes meanwhile; a network that was loaded so is used so.
#[doc(hidden)]
pub fn plainly<T>(f: impl FnOnce() -> T) -> T {
    /// Puts back what was, also behind a panic.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            PLAIN.set(self.0);
        }
    }
    let _before = Before(PLAIN.replace(true));
    f()
}

/// Whether this crate's kernels compute what lies on `device`.
pub(crate) fn has_kernels(device: &candle_core::Device) -> bool {
    device.is_cpu() && !PLAIN.get()
}

/// Whether this crate's kernels compute with `x`.
pub(crate) fn by_kernels(x: &Tensor) -> bool {
    has_kernels(x.device())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:11", Device::Cuda(11)),
            ("metal:1", Device::Metal(1)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), DeviceChoice::This(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::This(Device::Cuda(0)));
        assert_eq!("metal".parse::<DeviceChoice>().unwrap().to_string(), "metal:0");
        assert_eq!("auto".parse::<DeviceChoice>().unwrap(), DeviceChoice::Auto);
        for wrong in ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:0:1", "cpu:0", "auto:1"] {
            let message = wrong.parse::<DeviceChoice>();
            assert!(message.is_err(), "{wrong}");
        }
        let message = "gpu".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(message, "expected cpu, cuda, cuda:NUMBER, metal, metal:NUMBER or auto, found \"gpu\"");
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(Device::available()[0], Device::Cpu);
        let choice = [DeviceChoice::default()];
        assert_eq!(Devices::open(&choice).unwrap(), Devices::default());
        assert_eq!(Devices::open(&[]).unwrap().to_string(), "cpu");
        assert_eq!(Devices::default().hardware(), None);
        assert!(DeviceChoice::Auto.device().is_ok());
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn what_was_not_built_in_says_how_to_build_it() {
        let message = |device| Devices::open(&[DeviceChoice::This(device)]).unwrap_err().to_string();
        assert_eq!(
            message(Device::Cuda(1)),
            "cuda:1 cannot be used: this program was built without it; build it with `cargo build --release --features \
             cuda`, or choose among what is there: cpu"
        );
        assert!(message(Device::Metal(0)).contains("--features metal"));
        assert_eq!(DeviceChoice::Auto.device().unwrap(), Device::Cpu);
    }

    #[test]
    fn several_devices_are_alike_and_not_the_same() {
        let of = |all: &[Device], hardware: &[&str]| {
            Devices::of(all.to_vec(), hardware.iter().map(|name| (*name).to_owned()).collect())
        };
        let both = of(&[Device::Cuda(0), Device::Cuda(1)], &["cuda (A)", "cuda (A)"]).unwrap();
        assert_eq!((both.to_string().as_str(), both.hardware()), ("cuda:0, cuda:1", Some("cuda (A)")));
        let message = |all: &[Device], hardware: &[&str]| of(all, hardware).unwrap_err().to_string();
        let unlike = message(&[Device::Cuda(0), Device::Cuda(1)], &["cuda (A)", "cuda (B)"]);
        assert!(unlike.contains("cuda:0 (A) and cuda:1 (B)"), "{unlike}");
        assert!(message(&[Device::Cpu, Device::Cuda(1)], &["cpu", "cuda (A)"]).contains("cpu and cuda:1 (A)"));
        assert!(message(&[Device::Cuda(1); 2], &["cuda (A)"; 2]).contains("cuda:1 twice"));
    }

    #[test]
    fn plain_networks_are_asked_for_by_a_thread() {
        let cpu = candle_core::Device::Cpu;
        assert!(has_kernels(&cpu));
        plainly(|| {
            assert!(!has_kernels(&cpu));
            plainly(|| ());
            assert!(!has_kernels(&cpu));
            assert!(std::thread::spawn(|| has_kernels(&candle_core::Device::Cpu)).join().unwrap());
        });
        assert!(has_kernels(&cpu));
    }
}
