//! Who listens on a port, from /proc: for error messages.

use std::fs;

/// `nginx (pid 123)`, or that somebody has it who cannot be seen.
pub fn owner(protocol: &str, port: u16) -> Option<String> {
    let inode =
        ["", "6"].iter().find_map(|family| inode(&fs::read_to_string(format!("/proc/net/{protocol}{family}")).ok()?, protocol, port))?;
    let wanted = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let mut holding = pids.filter(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd"));
        open.into_iter().flatten().flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
    });
    let pid = holding.next()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (pid {pid})", name.trim()))
}

/// The socket's inode in a table of /proc/net; for TCP only a listening one.
fn inode(table: &str, protocol: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let number = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        (number == port && (protocol != "tcp" || *state == LISTEN)).then(|| inode.to_string())
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_owner_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = super::owner("tcp", listener.local_addr().unwrap().port()).unwrap();
        assert!(owner.contains(&format!("(pid {})", std::process::id())), "{owner}");
        assert_eq!(super::owner("tcp", 1), None);
    }
}
