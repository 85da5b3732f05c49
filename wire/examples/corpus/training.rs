//! What the dictionary is made from: frames of apps that do not exist, from a seed.

use carillon_wire::{
    frame,
    idl::{self, ChangeKind},
};

use super::dice::Dice;
use super::document::{self, Document, Field, Missed, What, base64};
use super::prose::{Material, Prose};

const SEED: u64 = 1;
const SAMPLES: usize = 2_400;
const DICTIONARY_BYTES: usize = 32 << 10;

/// The dictionary.
///
/// # Errors
/// The trainer's own.
pub fn dictionary() -> std::io::Result<Vec<u8>> {
    zstd::dict::from_samples(&samples(), DICTIONARY_BYTES)
}

/// Frames, each as it would be packed.
pub fn samples() -> Vec<Vec<u8>> {
    let mut dice = Dice(SEED);
    let prose = Prose::new(&MATERIAL);
    (0..SAMPLES).map(|_| sample(&prose, &mut dice)).collect()
}

fn sample(prose: &Prose, dice: &mut Dice) -> Vec<u8> {
    let format = match dice.below(2) {
        0 => idl::ValueFormat::JSON,
        _ => idl::ValueFormat::THRIFT,
    };
    let app = dice.below(APPS.len());
    let mut seq = 1 + (dice.next() % 5_000_000) as i64;
    let mut now_ms = 1_700_000_000_000 + (dice.next() % 300_000_000_000) as i64;
    let entries = (0..1 + dice.below(12)).map(|_| {
        seq += 1;
        now_ms += 1 + dice.below(4_000_000) as i64;
        missed(app, seq, now_ms, prose, dice).entry(format)
    });
    let entries = entries.collect();
    let queue = format!("{}{}", prose.word('N', dice), dice.below(9_000));
    let regid = document::base32(&dice.bytes(15));
    let down = document::frame(entries, &queue, &regid, dice.bytes(8));
    let mut bytes = Vec::new();
    frame::encode_down(&down, &mut bytes).expect("a frame");
    bytes
}

fn missed(app: usize, seq: i64, now_ms: i64, prose: &Prose, dice: &mut Dice) -> Missed {
    let (collection, make) = APPS[app];
    let document = make(prose, dice, now_ms);
    if dice.percent(30) {
        let id = [&now_ms.to_be_bytes()[2..], &dice.bytes(9)].concat();
        let what = What::Message { id, time_ms: now_ms };
        return Missed { seq, what, document: Some(document) };
    }
    let kind = match dice.below(12) {
        0 => ChangeKind::DELETE,
        1..5 => ChangeKind::NEW,
        _ => ChangeKind::UPDATE,
    };
    let key = match dice.below(3) {
        0 => base64(&dice.bytes(16)),
        1 => document::base32(&dice.bytes(10)),
        _ => format!("{}-{}", collection, dice.below(100_000)),
    };
    let what = What::Change { collection, key, kind, clock: now_ms << 16 };
    Missed { seq, what, document: (kind != ChangeKind::DELETE).then_some(document) }
}

type Make = fn(&Prose, &mut Dice, i64) -> Document;

/// By the collection's name.
const APPS: [(&str, Make); 6] = [
    ("tasks", task),
    ("events", event),
    ("orders", order),
    ("chats", chat),
    ("files", file),
    ("settings", setting),
];

fn task(prose: &Prose, dice: &mut Dice, now_ms: i64) -> Document {
    Document(vec![
        ("title", Field::Text(prose.title(dice))),
        ("description", Field::Text(prose.text(dice, 2))),
        ("status", Field::Text((*dice.one_of(&["open", "done", "waiting"])).to_owned())),
        ("due", Field::Number(now_ms / 1_000)),
        ("tags", Field::List(vec![prose.word('A', dice), prose.word('N', dice)])),
    ])
}

fn event(prose: &Prose, dice: &mut Dice, now_ms: i64) -> Document {
    Document(vec![
        ("summary", Field::Text(prose.title(dice))),
        ("location", Field::Text(prose.name(dice))),
        ("starts_at", Field::Number(now_ms)),
        ("ends_at", Field::Number(now_ms + 3_600_000)),
        ("details", Field::Text(prose.sentence(dice))),
    ])
}

fn order(prose: &Prose, dice: &mut Dice, now_ms: i64) -> Document {
    Document(vec![
        ("order_id", Field::Number((dice.next() % 10_000_000) as i64)),
        ("customer", Field::Text(prose.name(dice))),
        ("items", Field::List((0..1 + dice.below(4)).map(|_| prose.word('S', dice)).collect())),
        ("total_cents", Field::Number((dice.next() % 90_000) as i64)),
        ("created_at", Field::Number(now_ms)),
        ("comment", Field::Text(prose.sentence(dice))),
    ])
}

fn chat(prose: &Prose, dice: &mut Dice, now_ms: i64) -> Document {
    let sentences = 1 + dice.below(2);
    Document(vec![
        ("type", Field::Text("text".to_owned())),
        ("from", Field::Text(prose.name(dice).to_lowercase())),
        ("body", Field::Text(prose.text(dice, sentences))),
        ("sent_at", Field::Number(now_ms)),
        ("nonce", Field::Random(dice.bytes(12))),
    ])
}

fn file(prose: &Prose, dice: &mut Dice, now_ms: i64) -> Document {
    Document(vec![
        ("name", Field::Text(format!("{}.pdf", prose.word('N', dice)))),
        ("size", Field::Number((dice.next() % 9_000_000) as i64)),
        ("sha256", Field::Random(dice.bytes(32))),
        ("modified", Field::Number(now_ms)),
        ("owner", Field::Text(prose.name(dice))),
    ])
}

fn setting(prose: &Prose, dice: &mut Dice, _: i64) -> Document {
    Document(vec![
        ("value", Field::Text(prose.word('A', dice))),
        ("enabled", Field::Number(dice.below(2) as i64)),
        ("note", Field::Text(prose.sentence(dice))),
    ])
}

pub const MATERIAL: Material = Material {
    nouns: "account address advice agenda agreement airport amount answer archive article audience balance banner bill board bonus book \
        booking border branch-office brand budget building bus business buyer calendar call camera campaign capital career carrier case \
        category center chairman change channel chapter charge chart city class client code colleague column comment committee company \
        computer concert conference contract copy corner cost council country course court credit crew currency customer data date day \
        deadline deal debt decision degree delay delivery demand department deposit design desk device diagram director discount display \
        district document draft driver economy editor effort election email employee energy engine entrance error evening event example \
        exchange expense expert factory fault fee festival field figure film flight floor folder form freight friend fund game garage \
        group growth guest guide harbour hotel hour house idea image income industry interview invoice issue item job journal journey \
        keyboard label language laptop law leader lesson letter level library licence limit line list location loss machine magazine mail \
        manager manual map margin market meeting member menu message method minute model module money month morning museum music network \
        news newspaper notice number office officer option package page paper parcel park partner passenger password payment \
        people percent phone photo picture plan platform player policy position post price printer problem process product profit program \
        project proposal protocol question queue rate reason receipt record region reply report request response result review risk road \
        room route rule salary sale sample schedule school screen season section sector seller series server service share shift shipment \
        shop side signal site size software speaker speech staff station statement step stock store street student studio subject summary \
        supplier supply support survey system table target task tax teacher team test theatre ticket time title topic tour town \
        track trade traffic train transfer transport travel trip truck union unit university update user vacation value vehicle version \
        view village visit visitor voice vote wage warehouse warranty week weekend window word work worker workshop year zone",
    verbs: "accept add agree allow announce apply approve arrange arrive ask assign attach attend book call cancel change charge check \
        claim close collect compare complete confirm connect consider contact continue correct count create cross decide deliver demand \
        deposit describe design discuss divide download earn edit email employ enter estimate examine expect explain export extend fail \
        file finish fix follow format handle happen help hire improve include increase inform install introduce invite issue join \
        launch learn like link load look manage mark measure mention miss monitor move need note notice offer open order organise own \
        park pass pay phone place plan prepare present print process produce promise provide publish purchase question raise reach \
        receive recommend record reduce refuse register remind remove rent repair repeat replace reply report request reserve resolve \
        return review save schedule search sign solve sort start stop study suggest supply support switch talk test thank track trade \
        train transfer travel travel-book turn update upload use view visit wait walk want warn watch work",
    adjectives: "able actual annual available average basic busy central certain cheap clear commercial common complete correct current \
        daily different digital direct double early easy economic electronic empty equal exact expensive extra fair famous fast final \
        financial first foreign formal free frequent full further general good great half helpful high huge important individual \
        industrial international large last late legal less likely local long low main major medium minor mobile modern monthly national \
        necessary new next normal official old only open original other particular personal popular possible present private probable \
        professional public quick ready real recent regional regular relevant responsible right safe same secure senior separate serious \
        several short similar simple single small social special standard strong successful technical temporary total true typical \
        unknown urgent useful usual valid weekly whole wide wrong young",
    adverbs: "abroad again ahead almost already also always currently daily early elsewhere exactly finally first fully generally \
        here immediately just largely lately later maybe meanwhile monthly mostly never next normally now nearly online partly personally \
        possibly previously probably quickly really recently regularly shortly soon still successfully then there today tomorrow tonight \
        usually yesterday yet",
    syllables: "an ber ca con da den di en fa ga go hem in ja ka ko la le li lo ma mi mo na ne ni no pa pe po ra re ri ro sa se si so ta \
        te ti to va vi za",
    patterns: &[
        "please V the N until the N, thank you.",
        "the N has been D by P.",
        "we have D your N and will V it B.",
        "your A N is ready.",
        "there are 0 A S in the N.",
        "could we V the S on monday at 0?",
        "hi P, can you V this N B?",
        "all S must be D within 0 days.",
        "the A N for the N will V B.",
        "thanks for G the N with us.",
        "is there a A N to V?",
        "this N was D because of a A N.",
        "you can V S here.",
        "for more S about this N, V the A N.",
        "the S from P were D at 0:00.",
        "it seems that this is the A N, but we need to V it with the N.",
    ],
};
