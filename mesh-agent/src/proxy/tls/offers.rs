//! What those who call are offered: the configuration of the pod's identity, with what the proxy speaks.

use std::{collections::HashMap, sync::Arc};

use rustls::ServerConfig;

use crate::proxy::hbone;

/// By slot: the configuration as it was given, and with the protocols.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Offers(HashMap<u32, (Arc<ServerConfig>, Arc<ServerConfig>)>);

impl Offers {
    /// `config` with the protocols.
    pub(in crate::proxy) fn of(&mut self, slot: u32, config: &Arc<ServerConfig>) -> Arc<ServerConfig> {
        if let Some((given, offered)) = self.0.get(&slot)
            && Arc::ptr_eq(given, config)
        {
            return Arc::clone(offered);
        }
        let mut offered = ServerConfig::clone(config);
        offered.alpn_protocols = vec![hbone::ALPN.to_vec()];
        // Records are sealed and opened here, after the handshake.
        offered.enable_secret_extraction = true;
        let offered = Arc::new(offered);
        self.0.insert(slot, (Arc::clone(config), Arc::clone(&offered)));
        offered
    }

    /// The pod is gone.
    pub(in crate::proxy) fn forget(&mut self, slot: u32) {
        self.0.remove(&slot);
    }
}
