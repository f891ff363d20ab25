//! Other people's firewalls: Docker, ufw and the like drop what they do not know.
//!
//! An accept in a table of ours does not overrule a drop in another's, so where a foreign chain on the forward or input
//! hook drops by policy, two plain accept rules for the pod range go to its front (into `DOCKER-USER` where there is one,
//! which Docker keeps for that purpose). They are written as `iptables-nft` itself would write them, carry our comment,
//! and `down` takes them out again. What cannot be solved is said in a warning with the way out.

use std::fs;

use crate::instance::Instance;
use crate::netlink::{Result, Socket};
use crate::nft::{self, Batch, Chain, DESTINATION, Expr, Hook, SOURCE, Verdict};
use crate::pods::Config;

const HOOK_INPUT: u32 = Hook::Input as u32;
const HOOK_FORWARD: u32 = Hook::Forward as u32;

fn comment(instance: &Instance) -> String {
    instance.alias("pods")
}

/// Opens what drops; returns what it could not open, in words for the operator. May be called again and again.
pub fn open(socket: &mut Socket, config: &Config) -> Result<Vec<String>> {
    let instance = Instance::new(&config.instance);
    let chains = nft::chains(socket)?;
    let comment = comment(&instance);
    let ours = nft::commented_rules(socket)?;
    let mut warnings = Vec::new();
    for chain in &chains {
        let Some((hook, true)) = chain.base else { continue };
        if !matches!(chain.family, nft::INET | nft::IPV4) || !matches!(hook, HOOK_INPUT | HOOK_FORWARD) {
            continue;
        }
        let into = front_of(&chains, chain, hook);
        let there = ours.iter().any(|r| r.comment == comment && (r.family, &r.table, &r.chain) == (into.family, &into.table, &into.name));
        if there {
            continue;
        }
        match accept(socket, config, into, hook, &comment) {
            Ok(()) => tracing::info!(table = into.table, chain = into.name, "accept rules for pods put into a firewall that drops"),
            Err(e) => warnings.push(format!(
                "the firewall chain {} of table {} drops packets of pods ({e}); let {} pass there",
                into.name, into.table, config.cluster_cidr
            )),
        }
    }
    warnings.extend(unsolved(socket, config)?);
    Ok(warnings)
}

fn front_of<'a>(chains: &'a [Chain], base: &'a Chain, hook: u32) -> &'a Chain {
    let user = |c: &&Chain| (c.family, &c.table, c.name.as_str()) == (base.family, &base.table, "DOCKER-USER");
    if hook == HOOK_FORWARD { chains.iter().find(user).unwrap_or(base) } else { base }
}

fn accept(socket: &mut Socket, config: &Config, chain: &Chain, hook: u32, comment: &str) -> Result<()> {
    let mut batch = Batch::of(chain.family, &chain.table);
    let fields: &[_] = if hook == HOOK_FORWARD { &[DESTINATION, SOURCE] } else { &[SOURCE] };
    for field in fields {
        let family = [Expr::Family(nft::R0), Expr::Equal(nft::R0, vec![nft::IPV4])];
        let family = family.into_iter().filter(|_| chain.family == nft::INET);
        let rest = nft::in_range(*field, config.cluster_cidr).into_iter().chain([Expr::Count, Expr::Do(Verdict::Accept)]);
        batch.insert_rule(&chain.name, comment, family.chain(rest));
    }
    batch.commit(socket)
}

/// Firewalls whose rules are not ours to write.
fn unsolved(socket: &mut Socket, config: &Config) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    if nft::tables(socket)?.iter().any(|(_, name)| name == "firewalld") {
        warnings.push(format!(
            "firewalld is active and may drop packets of pods; run: firewall-cmd --permanent --zone=trusted --add-source={} && firewall-cmd --reload",
            config.cluster_cidr
        ));
    }
    let legacy = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if legacy.lines().any(|table| table == "filter") {
        warnings.push(format!(
            "the legacy iptables filter table is in use; if its FORWARD policy is DROP, run: iptables-legacy -I FORWARD -s {0} -j ACCEPT; iptables-legacy -I FORWARD -d {0} -j ACCEPT",
            config.cluster_cidr
        ));
    }
    Ok(warnings)
}

/// Takes our rules out of other people's chains; returns what it removed, or would remove.
pub fn close(socket: &mut Socket, instance: &Instance, dry_run: bool) -> Result<Vec<String>> {
    let comment = comment(instance);
    let mut removed = Vec::new();
    for rule in nft::commented_rules(socket)?.into_iter().filter(|r| r.comment == comment) {
        if !dry_run {
            let mut batch = Batch::of(rule.family, &rule.table);
            batch.delete_rule(&rule.chain, rule.handle);
            batch.commit(socket)?;
        }
        removed.push(format!("firewall rule in table {} chain {}", rule.table, rule.chain));
    }
    Ok(removed)
}
