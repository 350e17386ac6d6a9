//! A device of one's own, for those who have none yet.

use std::sync::{Arc, PoisonError};

use super::{Faults, Wgpu};
use crate::{Error, Result};

impl Wgpu {
    /// Picks an adapter and opens a device on it with the adapter's own limits: the one whose name contains
    /// `WGPU_ADAPTER_NAME` (an environment variable), else the fastest that `WGPU_BACKEND` (say `vulkan`)
    /// leaves. [`adapter`](Wgpu::adapter) says which it is, `Display` in one line.
    ///
    /// What goes wrong on such a device later on does not panic, as it does by wgpu's default: the next call
    /// returns it.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] with what there is instead, [`Error::Limit`] if the adapter cannot run the kernels,
    /// [`Error::Device`] if it gives no device.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open() -> Result<Wgpu> {
        super::ready(Wgpu::open_async())
    }

    /// [`open`](Wgpu::open) where waiting is not allowed, as in a browser.
    ///
    /// # Errors
    /// As [`open`](Wgpu::open).
    pub async fn open_async() -> Result<Wgpu> {
        let name = std::env::var("WGPU_ADAPTER_NAME").ok();
        let name = name.filter(|name| !name.is_empty());
        Wgpu::on_adapter(&pick(name.as_deref()).await?).await
    }

    /// As [`open`](Wgpu::open), on the first adapter whose name contains `name`, upper or lower case.
    ///
    /// # Errors
    /// As [`open`](Wgpu::open).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open_named(name: &str) -> Result<Wgpu> {
        super::ready(async { Wgpu::on_adapter(&pick(Some(name)).await?).await })
    }

    /// Opens a device on `adapter` with the adapter's own limits, and timestamps if it has them.
    ///
    /// # Errors
    /// [`Error::Limit`] if the adapter cannot run the kernels, [`Error::Device`] if it gives no device.
    pub async fn on_adapter(adapter: &wgpu::Adapter) -> Result<Wgpu> {
        super::check_limits(&adapter.limits())?;
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("pie-rope"),
                required_features: adapter.features() & wgpu::Features::TIMESTAMP_QUERY,
                required_limits: adapter.limits(),
                ..Default::default()
            })
            .await
            .map_err(|error| Error::Device(error.to_string()))?;
        let faults = Arc::new(Faults::default());
        let heard = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            heard.note(super::error_of(error));
        }));
        let heard = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            heard.note(Error::DeviceLost(format!("{reason:?}: {message}")));
        });
        let mut wgpu = Wgpu::new(&device, &queue)?;
        wgpu.faults = faults;
        Ok(wgpu)
    }
}

impl Faults {
    fn note(&self, error: Error) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A lost device explains whatever came before it.
        if first.is_none() || matches!(error, Error::DeviceLost(_)) {
            *first = Some(error);
        }
    }
}

async fn pick(name: Option<&str>) -> Result<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle().with_env();
    let instance = wgpu::Instance::new(descriptor);
    if let Some(name) = name {
        let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let names: Vec<_> = adapters.iter().map(|a| a.get_info().name).collect();
        let wanted = |known: &String| known.to_lowercase().contains(&name.to_lowercase());
        let index = names.iter().position(wanted);
        return index
            .and_then(|index| adapters.into_iter().nth(index))
            .ok_or_else(|| {
                let names = match names.as_slice() {
                    [] => "none at all (is a driver installed?)".into(),
                    names => names.join(", "),
                };
                Error::NoAdapter(format!("`{name}` is asked for, there is: {names}"))
            });
    }
    let options = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    };
    instance
        .request_adapter(&options)
        .await
        .map_err(|error| Error::NoAdapter(format!("{error} (is a driver installed?)")))
}
