//! The clients of a process: one per server and budget, however many stages and tasks ask for it.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    backend::Backend,
    budget::{Budget, BudgetState},
    client::{Client, ClientConfig},
    error::LlmError,
    gate::{Gate, Pace},
    prices::PriceTable,
    spending::Spending,
    store::{Store, budget_number},
};

/// Makes and holds clients, so that a server's pace and a budget's limits are those of the process.
#[derive(Debug, Default)]
pub struct Clients {
    offline: bool,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    stores: HashMap<PathBuf, Arc<Store>>,
    /// By store and name.
    budgets: HashMap<(PathBuf, String), Arc<Budget>>,
    gates: Vec<(String, Pace, Arc<Gate>)>,
    clients: Vec<(PathBuf, ClientConfig, Arc<Client>)>,
}

impl Clients {
    /// No clients yet. With `offline`, all of them answer from their stores only.
    pub fn new(offline: bool) -> Self {
        Self { offline, held: Mutex::default() }
    }

    /// The client of this config, made at the first call. Stages that name one server with the same pace share that pace; those that name one store and
    /// budget share what is spent, each with its own limits.
    ///
    /// # Errors
    /// As [`Client::new`] and [`Store::open`].
    pub fn client(&self, config: ClientConfig, store: &Path, prices: PriceTable) -> Result<Arc<Client>, LlmError> {
        self.client_of(config, None, store, prices)
    }

    /// As [`Clients::client`], of a model in this process: `config.endpoint.url` names it, and `config.namespace` must tell its weights from any others',
    /// so that their answers are never taken for its own. Where the client is there already, `model` is not needed.
    ///
    /// # Errors
    /// As [`Clients::client`].
    pub fn client_of_model(
        &self,
        config: ClientConfig,
        model: Arc<dyn Backend>,
        store: &Path,
        prices: PriceTable,
    ) -> Result<Arc<Client>, LlmError> {
        self.client_of(config, Some(model), store, prices)
    }

    fn client_of(
        &self,
        config: ClientConfig,
        model: Option<Arc<dyn Backend>>,
        store: &Path,
        prices: PriceTable,
    ) -> Result<Arc<Client>, LlmError> {
        let config = ClientConfig { offline: config.offline || self.offline, ..config };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.clients.iter().find(|(path, known, _)| path == store && *known == config);
        if let Some((_, _, client)) = known {
            return Ok(Arc::clone(client));
        }
        let opened = match held.stores.get(store) {
            Some(opened) => Arc::clone(opened),
            None => {
                let opened = if config.offline { Store::open_read_only(store)? } else { Store::open(store)? };
                held.stores.insert(store.to_owned(), Arc::clone(&opened));
                opened
            }
        };
        let url = &config.endpoint.url;
        let known = held.gates.iter().find(|(known, pace, _)| known == url && *pace == config.pace);
        let gate = match known {
            Some((_, _, gate)) => Arc::clone(gate),
            None => {
                let gate = Gate::new(config.pace, url.clone());
                held.gates.push((url.clone(), config.pace, Arc::clone(&gate)));
                gate
            }
        };
        // One account per name, also where stages with limits of their own ask different servers.
        let named = held.budgets.entry((store.to_owned(), config.budget.clone()));
        let budget = named.or_insert_with(|| Budget::new(opened.spent(budget_number(&config.budget))));
        let budget = Arc::clone(budget);
        let client = Client::sharing(config.clone(), model, opened, prices, gate, budget)?;
        held.clients.push((store.to_owned(), config, Arc::clone(&client)));
        Ok(client)
    }

    /// Whether nobody is asked.
    pub const fn is_offline(&self) -> bool {
        self.offline
    }

    /// Waits until the requests of all clients that are on their way have ended, so that their answers are kept: the last thing a process does.
    pub async fn settled(&self) {
        let clients: Vec<Arc<Client>> = {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.clients.iter().map(|(_, _, client)| Arc::clone(client)).collect()
        };
        for client in clients {
            client.settled().await;
        }
    }

    /// The budgets with limits, by name.
    pub fn budgets(&self) -> Vec<BudgetState> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut states: BTreeMap<(&str, &Path), BudgetState> = BTreeMap::new();
        for (store, config, client) in held.clients.iter().filter(|(_, config, _)| config.limits.any()) {
            let state = states.entry((&config.budget, store)).or_insert_with(|| BudgetState {
                name: config.budget.clone(),
                limits: config.limits,
                spent: client.budget().spent(),
            });
            state.limits = state.limits.and(config.limits);
        }
        states.into_values().collect()
    }

    /// What all clients of the process did together.
    pub fn spending(&self) -> Spending {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut total = Spending::default();
        held.clients.iter().for_each(|(_, _, client)| total.add(&client.spending()));
        // Counted by the stores, which clients share.
        total.interrupted = held.stores.values().map(|s| s.interrupted()).sum();
        total
    }
}
