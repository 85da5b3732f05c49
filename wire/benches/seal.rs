//! What sealing costs for each message and each follower. `cargo bench -p carillon-wire --bench seal`
//!
//! Prints a line a case, CPU time of one thread; it judges nothing.

use std::hint::black_box;
use std::time::Instant;

use carillon_wire::seal::{BodyHash, EntrySecret, Item, PrivateKey, Queue, RegistrationKey};

const ID: [u8; 15] = [7; 15];
const REGID: &str = "mzxw6ytboi4dcmrtgq2tmnzyhe";
const TURNS: u64 = 50_000;

fn main() {
    let app = PrivateKey::random().unwrap();
    let device = PrivateKey::random().unwrap();
    let key = RegistrationKey::of_device(&device, &app.public().unwrap(), REGID).unwrap();
    let secret = EntrySecret::random().unwrap();
    let own = Queue { kind: 1, name: "", epoch: 1 };
    let topic = Queue { kind: 3, name: "news", epoch: 1 };
    let item = |seq| Item { seq, id: &ID, time_ms: 1_700_000_000_000 };

    time("agree a registration's key (once)", 2_000, |_| {
        RegistrationKey::of_app(&app, &device.public().unwrap(), REGID).unwrap()
    });
    time("derive the key of a queue (once a frame)", TURNS, |_| key.own(&own).unwrap());
    for bytes in [64, 256, 1024, 4096] {
        let sealing = key.own(&own).unwrap();
        time(&format!("own queue: seal {bytes} bytes"), TURNS, |seq| {
            sealing.seal(REGID, &own, &item(seq), vec![0; bytes]).unwrap()
        });
        time(&format!("shared queue: key, seal and hash {bytes} bytes (once)"), TURNS, |seq| {
            let key = secret.entry_key(&topic, &item(seq)).unwrap();
            let sealed = key.seal(&topic, &item(seq), vec![0; bytes]).unwrap();
            (BodyHash::of(&sealed), sealed)
        });
    }
    let entry = secret.entry_key(&topic, &item(1)).unwrap();
    let sealed = entry.seal(&topic, &item(1), vec![0; 256]).unwrap();
    let hash = BodyHash::of(&sealed);
    let mut out = Vec::new();
    time("shared queue: derive and wrap, for each follower", TURNS, |_| {
        out.clear();
        let wrapping = key.wrapping(&topic).unwrap();
        wrapping.wrap(REGID, &topic, &item(1), &hash, &entry, &mut out).unwrap();
    });
    let wrapping = key.wrapping(&topic).unwrap();
    time("shared queue: wrap alone, each further entry of a frame", TURNS, |_| {
        out.clear();
        wrapping.wrap(REGID, &topic, &item(1), &hash, &entry, &mut out).unwrap();
    });
    let wrapped = out[..].try_into().unwrap();
    time("device: derive, unwrap and open 256 bytes", TURNS, |_| {
        let wrapping = key.wrapping(&topic).unwrap();
        let hash = BodyHash::of(&sealed);
        let entry = wrapping.unwrap(REGID, &topic, &item(1), &hash, &wrapped).unwrap();
        entry.open(&topic, &item(1), sealed.clone()).unwrap()
    });
}

fn time<T>(what: &str, turns: u64, mut turn: impl FnMut(u64) -> T) {
    (0..turns / 10).for_each(|seq| drop(black_box(turn(seq))));
    let start = Instant::now();
    (0..turns).for_each(|seq| drop(black_box(turn(seq))));
    let ns = start.elapsed().as_nanos() / u128::from(turns);
    println!("{ns:>8} ns  {what}");
}
