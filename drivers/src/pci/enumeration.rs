//! Finding all functions.

use super::access::{Address, ConfigAccess};
use super::function::Function;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

/// A set of bus numbers.
#[derive(Default)]
struct Buses([u128; 2]);

impl Buses {
    /// Adds a bus; whether it was new.
    fn insert(&mut self, bus: u8) -> bool {
        let [low, high] = &mut self.0;
        let (half, bit) = if bus < 128 { (low, bus) } else { (high, bus & 127) };
        let mask = 1_u128.checked_shl(u32::from(bit)).unwrap_or(0);
        let new = *half & mask == 0;
        *half |= mask;
        new
    }
}

/// A bus to look at.
struct Bus {
    number: u8,
    /// It is a link with one device at its end, which has number 0.
    link: bool,
}

/// All functions on the first bus that `access` reaches and behind bridges, by address. Each is left as
/// [`Function::quiet`] says, but for those that `keep` says are in use.
pub fn enumerate(access: &Arc<dyn ConfigAccess>, keep: impl Fn(&Function) -> bool) -> Vec<Arc<Function>> {
    let mut functions = Vec::new();
    let mut seen = Buses::default();
    let first = *access.buses().start();
    seen.insert(first);
    let mut waiting = vec![Bus { number: first, link: false }];
    while let Some(bus) = waiting.pop() {
        for device in 0..if bus.link { 1 } else { 32 } {
            for function in 0..8 {
                let segment = access.segment();
                let at = Address { segment, bus: bus.number, device, function };
                let Some(found) = Function::find(access, at) else {
                    if function == 0 {
                        break;
                    }
                    continue;
                };
                // Bridges lead away from the first bus, each to buses of its own; others do not exist, whatever they
                // say.
                if let Some(number) = found.bridge_to().filter(|number| *number > bus.number)
                    && access.buses().contains(&number)
                    && seen.insert(number)
                {
                    waiting.push(Bus { number, link: found.is_link() });
                }
                if !keep(&found) {
                    found.quiet();
                }
                let single = function == 0 && !found.has_more();
                functions.push(Arc::new(found));
                if single {
                    break;
                }
            }
        }
    }
    functions.sort_by_key(|function| function.address());
    functions
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Configuration, FakeFunction, at};
    use super::*;
    use proptest::prelude::*;

    fn addresses(configuration: &Arc<Configuration>) -> Vec<Address> {
        let access: Arc<dyn ConfigAccess> = configuration.clone();
        enumerate(&access, |_| false).iter().map(|function| function.address()).collect()
    }

    #[test]
    fn functions_and_what_is_behind_bridges_are_found() {
        let configuration = Configuration::new();
        configuration.add(at(0, 0, 0), FakeFunction::device(0x8086, 0x29c0, [0x06, 0x00, 0]));
        configuration.add(at(0, 2, 0), FakeFunction::bridge(3, 4));
        configuration.add(at(0, 31, 0), FakeFunction::device(0x8086, 0x2918, [0x06, 0x01, 0]).multi());
        configuration.add(at(0, 31, 2), FakeFunction::device(0x8086, 0x2922, [0x01, 0x06, 1]));
        // The second function of a device that says it has one.
        configuration.add(at(0, 5, 0), FakeFunction::device(0x1af4, 0x1042, [0x01, 0x00, 0]));
        configuration.add(at(0, 5, 1), FakeFunction::device(0x1af4, 0x1042, [0x01, 0x00, 0]));
        configuration.add(at(3, 1, 0), FakeFunction::bridge(4, 4));
        configuration.add(at(4, 0, 0), FakeFunction::device(0x1b36, 0x10, [0x01, 0x08, 2]));
        // Nobody leads there.
        configuration.add(at(9, 0, 0), FakeFunction::device(0x1b36, 0x10, [0x01, 0x08, 2]));
        let expected =
            [at(0, 0, 0), at(0, 2, 0), at(0, 5, 0), at(0, 31, 0), at(0, 31, 2), at(3, 1, 0), at(4, 0, 0)];
        assert_eq!(addresses(&configuration), expected);
    }

    #[test]
    fn a_link_has_one_device() {
        let configuration = Configuration::new();
        configuration.add(at(0, 1, 0), FakeFunction::bridge(1, 1).root_port());
        for device in 0..32 {
            // As some answer to every number.
            configuration.add(at(1, device, 0), FakeFunction::device(0x1af4, 0x1042, [0x01, 0x00, 0]));
        }
        assert_eq!(addresses(&configuration), [at(0, 1, 0), at(1, 0, 0)]);
    }

    #[test]
    fn bridges_in_a_circle_are_followed_once() {
        let configuration = Configuration::new();
        configuration.add(at(0, 1, 0), FakeFunction::bridge(1, 255));
        configuration.add(at(0, 2, 0), FakeFunction::bridge(1, 255));
        configuration.add(at(1, 0, 0), FakeFunction::bridge(0, 255));
        configuration.add(at(1, 1, 0), FakeFunction::bridge(1, 255));
        assert_eq!(addresses(&configuration).len(), 4);
    }

    #[test]
    fn what_nobody_uses_is_quiet() {
        let configuration = Configuration::new();
        configuration.add(at(0, 1, 0), FakeFunction::device(1, 1, [0x02, 0, 0]).command(0x0007));
        configuration.add(at(0, 2, 0), FakeFunction::bridge(1, 1).command(0x0007));
        configuration.add(at(0, 3, 0), FakeFunction::device(1, 1, [0x03, 0, 0]).command(0x0007));
        let access: Arc<dyn ConfigAccess> = configuration.clone();
        enumerate(&access, |function| function.identity().class.is_display());
        assert_eq!(configuration.command(at(0, 1, 0)), 0x0403, "no memory accesses, no interrupts");
        assert_eq!(
            configuration.command(at(0, 2, 0)),
            0x0007,
            "a bridge is what others write memory through"
        );
        assert_eq!(configuration.command(at(0, 3, 0)), 0x0007, "it is in use");
    }

    proptest! {
        #[test]
        fn no_configuration_space_leads_astray(
            functions in proptest::collection::vec(
                (any::<u8>(), 0_u8..4, 0_u8..3, proptest::collection::vec(any::<u32>(), 64)), 0..20)
        ) {
            let configuration = Configuration::new();
            for (bus, device, function, words) in functions {
                configuration.add(at(bus & 3, device, function), FakeFunction::wild(&words));
            }
            let access: Arc<dyn ConfigAccess> = configuration.clone();
            let found = enumerate(&access, |_| false);
            for pair in found.windows(2) {
                prop_assert!(pair[0].address() < pair[1].address(), "each once");
            }
            for function in found {
                let capabilities = function.capabilities();
                prop_assert!(capabilities.len() <= 48);
                for bar in 0..8 {
                    if let Some(region) = function.bar(bar) {
                        prop_assert!(region.len > 0 && region.start.checked_add(region.len).is_some());
                    }
                }
            }
        }
    }
}
