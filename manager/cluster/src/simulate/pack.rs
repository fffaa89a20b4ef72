//! What capsules would cost at least: packed by best-fit decreasing, and as if they were liquid.
//!
//! With two sizes to a capsule there are several ways to decrease and to fit best. All of these are
//! tried, and the cheapest counts.

use crate::view::Flavor;

/// What an hour costs with all capsules, each with its processor time and memory, packed onto
/// nodes by best-fit decreasing; and as if they were liquid.
pub(super) fn cost(capsules: &[(u64, u64)], flavors: &[Flavor]) -> (u64, u64) {
    let (cpu, memory) =
        capsules.iter().fold((0, 0), |(cpu, memory), capsule| (cpu + capsule.0, memory + capsule.1));
    let least = |sum: u64, size: fn(&Flavor) -> u64| {
        let costs = flavors.iter().filter(|flavor| size(flavor) > 0);
        costs
            .map(|f| (u128::from(sum) * u128::from(f.price_micros) / u128::from(size(f))) as u64)
            .min()
            .unwrap_or(0)
    };
    let liquid = least(cpu, |f| f.capacity.cpu_milli).max(least(memory, |f| f.capacity.memory_kib));
    // Which of the two there is more to have of: a tenth of all memory is as large as a tenth of
    // all processor time.
    let weight = |flavor: &Flavor| {
        let nodes = |sum: u64, size: u64| sum as f32 / size.max(1) as f32;
        nodes(memory, flavor.capacity.memory_kib)
            / nodes(cpu, flavor.capacity.cpu_milli).max(f32::MIN_POSITIVE)
    };
    let packed = flavors
        .iter()
        .filter(|flavor| !flavors.iter().any(|other| better(other, flavor)))
        .flat_map(|flavor| [1.0, weight(flavor)].map(|weight| (flavor, weight)))
        .flat_map(|(flavor, weight)| RESTS.map(|rest| pack(capsules, flavor, flavors, weight, rest)))
        .flatten()
        .min()
        .unwrap_or(0);
    (packed, liquid)
}

/// What "best fit" means where there are two sizes, from what a node would have left of its
/// processors and its memory: less is better. Least in all, or least of one without the other.
const RESTS: [fn(f32, f32) -> f32; 2] =
    [|cpu, memory| cpu + memory, |cpu, memory| (cpu - memory).abs() + 0.1 * (cpu + memory)];

/// Whether one flavor is larger than the other, and costs no more for what it has of either.
fn better(one: &Flavor, other: &Flavor) -> bool {
    let no_dearer = |size: fn(&Flavor) -> u64| {
        u128::from(one.price_micros) * u128::from(size(other))
            <= u128::from(other.price_micros) * u128::from(size(one))
    };
    one.capacity.cpu_milli > other.capacity.cpu_milli
        && one.capacity.memory_kib > other.capacity.memory_kib
        && no_dearer(|f| f.capacity.cpu_milli)
        && no_dearer(|f| f.capacity.memory_kib)
}

/// Packs nodes of one flavor, the largest capsules first: by the sum of their parts of a node,
/// memory with a weight. Then takes for each node the cheapest flavor that holds what it got.
/// Nothing when a capsule is too large.
fn pack(
    capsules: &[(u64, u64)],
    flavor: &Flavor,
    flavors: &[Flavor],
    weight: f32,
    rest: fn(f32, f32) -> f32,
) -> Option<u64> {
    let size = (flavor.capacity.cpu_milli as f32, flavor.capacity.memory_kib as f32);
    let mut parts: Vec<(f32, f32)> =
        capsules.iter().map(|&(cpu, memory)| (cpu as f32 / size.0, memory as f32 / size.1)).collect();
    let large = |part: &(f32, f32)| part.0 + weight * part.1;
    parts.sort_by(|a, b| large(b).total_cmp(&large(a)));
    // What each node has left.
    let mut left: Vec<(f32, f32)> = Vec::new();
    // Nodes that are full in one respect are not looked at again.
    const FULL: f32 = 1e-4;
    let mut open: Vec<usize> = Vec::new();
    for (cpu, memory) in parts {
        let mut best: Option<(f32, usize)> = None;
        for (place, &node) in open.iter().enumerate() {
            let (cpu_left, memory_left) = left[node];
            if cpu <= cpu_left && memory <= memory_left {
                let size = rest(cpu_left - cpu, memory_left - memory);
                if best.is_none_or(|(least, _)| size < least) {
                    best = Some((size, place));
                }
            }
        }
        let place = match best {
            Some((_, place)) => place,
            None if cpu > 1.0 || memory > 1.0 => return None,
            None => {
                left.push((1.0, 1.0));
                open.push(left.len() - 1);
                open.len() - 1
            }
        };
        let node = &mut left[open[place]];
        *node = (node.0 - cpu, node.1 - memory);
        if node.0 < FULL || node.1 < FULL {
            open.swap_remove(place);
        }
    }
    let price = |&(cpu_left, memory_left): &(f32, f32)| {
        let (cpu, memory) = ((1.0 - cpu_left) * size.0, (1.0 - memory_left) * size.1);
        // A thousandth of grace for what dividing has rounded.
        let holds = |f: &&Flavor| {
            f.capacity.cpu_milli as f32 * 1.001 >= cpu && f.capacity.memory_kib as f32 * 1.001 >= memory
        };
        flavors.iter().filter(holds).map(|f| f.price_micros).min().unwrap_or(flavor.price_micros)
    };
    Some(left.iter().map(price).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::flavor;

    #[test]
    fn capsules_are_packed_onto_as_little_as_holds_them() {
        let flavors = [flavor("small", 1, 1024, 10), flavor("large", 4, 4096, 40)];
        let mib = |cpu: u64, mib: u64| (cpu, mib << 10);
        // 3 + 1 and 2 + 2 fill two large nodes; the last one needs a small one only.
        let capsules = [mib(3000, 1), mib(2000, 1), mib(2000, 1), mib(1000, 1), mib(500, 1)];
        assert_eq!(cost(&capsules, &flavors), (90, 85));
        // Memory counts where there is more of it.
        assert_eq!(cost(&[mib(1, 4096), mib(1, 512)], &flavors), (50, 45));
        assert_eq!(cost(&[], &flavors), (0, 0));
    }

    #[test]
    fn flavors_that_are_worse_in_all_are_not_packed() {
        let (small, large) = (flavor("small", 1, 640, 10), flavor("large", 4, 3712, 40));
        assert!(better(&large, &small) && !better(&small, &large));
        assert!(!better(&flavor("dear", 8, 8192, 100), &small));
    }
}
