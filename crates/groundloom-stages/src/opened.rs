//! A stage that asks a model, as it works: its config and the pool.

use std::{fmt, sync::Arc};

use groundloom_models::{ModelError, ModelOn, ModelPool, PooledModel, Work};

use crate::stage::StageError;

/// The opened form of stages that need nothing but their config and a model.
pub(crate) struct Opened<C> {
    pub(crate) config: C,
    models: Arc<ModelPool>,
}

impl<C: Clone> Opened<C> {
    pub(crate) fn new(config: &C, models: &Arc<ModelPool>) -> Arc<Self> {
        Arc::new(Self { config: config.clone(), models: Arc::clone(models) })
    }

    /// The pool's model `name`, on its devices, which `load` reads if it is not there yet; `kind` keeps apart what several stages make of the same weights.
    ///
    /// # Errors
    /// What keeps it from loading.
    pub(crate) async fn model<W: Work>(
        &self,
        kind: &str,
        name: &str,
        load: impl Fn(ModelOn<'_>) -> Result<W, ModelError> + Send + 'static,
    ) -> Result<PooledModel<W>, StageError> {
        let path = name.to_owned();
        let load = move |device| load(ModelOn::new(&path, device));
        Ok(self.models.get_on_devices(&format!("{kind} {name}"), load).await?)
    }
}

impl<C: fmt::Debug> fmt::Debug for Opened<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("config", &self.config).finish_non_exhaustive()
    }
}
