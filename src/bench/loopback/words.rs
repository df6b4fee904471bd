//! What a machine could do, as a table for people.

use super::result::{End, Loopback, Spent, Stage, StageName};
use crate::report::table::{Column, Table};
use crate::report::terminal::Terminal;

/// The table, and what follows from it.
#[must_use]
pub fn lines(result: &Loopback, terminal: &Terminal) -> Vec<String> {
    let mut table = Table::new([
        Column::text("STAGE", 0),
        Column::number("SEND GBIT/S", 0),
        Column::number("S/GB", 0),
        Column::number("SHARE", 1),
        Column::number("RECEIVE GBIT/S", 0),
        Column::number("S/GB", 0),
        Column::number("SHARE", 1),
    ]);
    for stage in result.stages.iter().chain([&result.sum]).chain(&result.others) {
        let [sending, receiving] = [cells(stage.sending), cells(stage.receiving)];
        let name = name(stage, result.gso).to_owned();
        let cells = [vec![name], sending, receiving].concat();
        table.row(cells.into_iter().map(Into::into).collect::<Vec<_>>());
    }
    let mut lines = table.lines(terminal);
    lines.push(String::new());
    lines.push(format!(
        "all of it, both ends on this machine ({} cores), one stream over 127.0.0.1: {:.2} Gbit/s, {:.2} CPU s/GB",
        result.cores, result.together.gbit_per_s, result.together.cpu_s_per_gb
    ));
    lines.push(limit(result));
    lines
}

fn limit(result: &Loopback) -> String {
    let limit = &result.limit;
    let doing = match (limit.stage, limit.end) {
        (StageName::Tcp, End::Sending) => "TCP, cutting segments",
        (StageName::Tcp, End::Receiving) => "TCP, putting segments together",
        (StageName::Wireguard, End::Sending) => "WireGuard, sealing packets",
        (StageName::Wireguard, End::Receiving) => "WireGuard, opening packets",
        (StageName::Syscalls, End::Sending) => "the system's calls, sending datagrams",
        (StageName::Syscalls, End::Receiving) => "the system's calls, receiving datagrams",
        _ => "the node around TCP and WireGuard",
    };
    let end = match limit.end {
        End::Sending => "sends",
        End::Receiving => "receives",
    };
    format!(
        "your limit is {doing}: {:.0} % of what the end that {end} spends, of which a core does {:.2} Gbit/s in all",
        limit.share * 100.0,
        limit.end_gbit_per_s
    )
}

fn name(stage: &Stage, gso: bool) -> &'static str {
    match stage.name {
        StageName::Tcp => "TCP",
        StageName::Wireguard => "WireGuard",
        StageName::Node => "the rest of the node",
        StageName::Syscalls if gso => "system calls (UDP, GSO and GRO)",
        StageName::Syscalls => "system calls (UDP, NIXTAIL_GSO=0)",
        StageName::Sum => "all of an end, on one core",
        StageName::SyscallsOneByOne => "instead: system calls without GSO",
        StageName::SshAes128Gcm => "over SSH: aes128-gcm",
        StageName::SshChacha20Poly1305 => "over SSH: chacha20-poly1305",
    }
}

/// What takes nothing that could be told from noise has no rate.
fn cells(spent: Spent) -> Vec<String> {
    if spent.cpu_s_per_gb == 0.0 {
        return ["-", "0.00", "0 %"].map(str::to_owned).to_vec();
    }
    let share = spent.share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
    vec![format!("{:.2}", spent.gbit_per_s), format!("{:.2}", spent.cpu_s_per_gb), share]
}
