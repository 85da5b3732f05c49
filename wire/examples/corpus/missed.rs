//! The corpus of the byte table: 1,000 entries that a device missed, from a seed. It shares no words, patterns and fields with what the
//! dictionary was made from.

use carillon_wire::idl::ChangeKind;

use super::dice::Dice;
use super::document::{Document, Field, Missed, What, base64};
use super::prose::{Material, Prose};

pub const SEED: u64 = 5_006;
pub const ENTRIES: usize = 1_000;
pub const QUEUE: &str = "household-41";

/// Changes of notes (45 %) and contacts (30 %), and messages (25 %).
pub fn entries(seed: u64) -> Vec<Missed> {
    let mut dice = Dice(seed);
    let prose = Prose::new(&MATERIAL);
    let mut now_ms: i64 = 1_790_000_000_000;
    let entry = |at: usize| {
        now_ms += 1 + dice.below(900_000) as i64;
        let seq = 73_000 + at as i64;
        let (collection, document) = match dice.below(20) {
            0..9 => ("notes", note(&prose, &mut dice, now_ms)),
            9..15 => ("contacts", contact(&prose, &mut dice, now_ms)),
            _ => {
                let document = Some(message(&prose, &mut dice, now_ms));
                return Missed {
                    seq,
                    what: What::Message { id: id(now_ms, &mut dice), time_ms: now_ms },
                    document,
                };
            }
        };
        let kind = match dice.below(20) {
            0 => ChangeKind::DELETE,
            1..8 => ChangeKind::NEW,
            _ => ChangeKind::UPDATE,
        };
        let clock = now_ms << 16 | dice.below(3) as i64;
        let document = (kind != ChangeKind::DELETE).then_some(document);
        let key = base64(&dice.bytes(16));
        Missed { seq, what: What::Change { collection, key, kind, clock }, document }
    };
    (0..ENTRIES).map(entry).collect()
}

/// What an app keeps in collections, to be filled and changed: items by number, with other content in each edition.
pub struct Items(Prose);

impl Items {
    pub fn new() -> Self {
        Self(Prose::new(&MATERIAL))
    }

    /// Collection, key and content; the same each time.
    pub fn item(&self, number: u64, edition: u64) -> (&'static str, String, Document) {
        let mut dice = Dice(SEED ^ number << 24);
        let key = base64(&dice.bytes(16));
        // As many of each as among the changes above.
        let is_note = dice.below(15) < 9;
        let now_ms = 1_790_000_000_000 + (number + 1_000 * edition) as i64;
        dice.0 ^= edition << 48;
        match is_note {
            true => ("notes", key, note(&self.0, &mut dice, now_ms)),
            false => ("contacts", key, contact(&self.0, &mut dice, now_ms)),
        }
    }
}

fn id(now_ms: i64, dice: &mut Dice) -> Vec<u8> {
    [&now_ms.to_be_bytes()[2..], &dice.bytes(9)].concat()
}

fn note(prose: &Prose, dice: &mut Dice, now_ms: i64) -> Document {
    let sentences = 1 + dice.below(3);
    let mut fields = vec![
        ("heading", Field::Text(prose.title(dice))),
        ("content", Field::Text(prose.text(dice, sentences))),
        ("labels", Field::List((0..dice.below(3)).map(|_| prose.word('N', dice)).collect())),
        ("folder", Field::Random(dice.bytes(16))),
        ("written_by", Field::Random(dice.bytes(16))),
        ("made_at_ms", Field::Number(now_ms - (dice.next() % 9_000_000_000) as i64)),
        ("edited_at_ms", Field::Number(now_ms)),
        ("edition", Field::Number(dice.below(40) as i64)),
        ("is_pinned", Field::Flag(dice.percent(10))),
        ("is_archived", Field::Flag(dice.percent(5))),
        ("is_shared", Field::Flag(dice.percent(30))),
        ("colour", Field::Text((*dice.one_of(&["yellow", "green", "pink"])).to_owned())),
    ];
    if dice.percent(75) {
        // A picture that is kept elsewhere, encrypted: its key and its hash.
        fields.push(("picture_key", Field::Random(dice.bytes(32))));
        fields.push(("picture_hash", Field::Random(dice.bytes(32))));
        fields.push(("picture_bytes", Field::Number((dice.next() % 900_000) as i64)));
        fields.push(("picture_format", Field::Text("image/jpeg".to_owned())));
    }
    if sentences > 1 {
        fields.push(("picture_preview", Field::Random(dice.bytes(128))));
    }
    Document(fields)
}

fn contact(prose: &Prose, dice: &mut Dice, now_ms: i64) -> Document {
    let (given, family) = (prose.name(dice), prose.name(dice));
    let mail = format!("{}@{}.example", given.to_lowercase(), prose.word('N', dice));
    let phone = format!("+{}", 400_000_000_000 + dice.next() % 99_000_000_000);
    let street = format!("{} {}", prose.name(dice), prose.word('0', dice));
    Document(vec![
        ("given_name", Field::Text(given)),
        ("family_name", Field::Text(family)),
        ("mailbox", Field::Text(mail)),
        ("telephone", Field::Text(phone)),
        ("street", Field::Text(street)),
        ("place", Field::Text(prose.name(dice))),
        ("remark", Field::Text(prose.sentence(dice))),
        ("birthday", Field::Text(birthday(dice))),
        ("is_favourite", Field::Flag(dice.percent(10))),
        ("language", Field::Text((*dice.one_of(&["en", "de", "fr"])).to_owned())),
        ("is_blocked", Field::Flag(dice.percent(2))),
        ("made_at_ms", Field::Number(now_ms - (dice.next() % 9_000_000_000) as i64)),
        ("edited_at_ms", Field::Number(now_ms)),
        ("edition", Field::Number(dice.below(9) as i64)),
        ("circle", Field::Random(dice.bytes(16))),
        ("portrait_key", Field::Random(dice.bytes(32))),
        ("portrait_hash", Field::Random(dice.bytes(32))),
        ("public_key", Field::Random(dice.bytes(32))),
    ])
}

fn birthday(dice: &mut Dice) -> String {
    let (year, month, day) = (1_930 + dice.below(90), 1 + dice.below(12), 1 + dice.below(28));
    format!("{year}-{month:02}-{day:02}")
}

fn message(prose: &Prose, dice: &mut Dice, now_ms: i64) -> Document {
    let sentences = 1 + dice.below(2);
    let mut fields = vec![
        ("thread", Field::Random(dice.bytes(16))),
        ("author", Field::Random(dice.bytes(16))),
        ("words", Field::Text(prose.text(dice, sentences))),
        ("written_at_ms", Field::Number(now_ms - dice.below(90_000) as i64)),
        ("edition", Field::Number(dice.below(3) as i64)),
        ("is_silent", Field::Flag(dice.percent(10))),
        ("is_pinned", Field::Flag(dice.percent(2))),
        ("mood", Field::Text((*dice.one_of(&["none", "none", "cheer", "laugh"])).to_owned())),
        ("signature", Field::Random(dice.bytes(64))),
        ("signed_with", Field::Random(dice.bytes(8))),
    ];
    if dice.percent(25) {
        fields.push(("answers", Field::Random(dice.bytes(15))));
    }
    Document(fields)
}

pub const MATERIAL: Material = Material {
    nouns: "acorn almond anchor ankle anthill apple apron arch armchair ash attic autumn axe badger bagpipe balcony bamboo bandage bank \
        barley barn barrel basin basket bathtub bay beach beak bean bear beard beaver bedroom bee beetle bell bellows belt bench berry \
        birch biscuit blanket blossom boat bonfire bonnet boot bottle boulder bow bowl bramble branch bread breeze brick bridge brook \
        broom broth bucket buckle bulb bundle burrow bush butter button cabbage cabin cage cake calf candle canoe canvas cape carpet \
        carrot cart castle cat cattle cave cedar cellar chain chalk cheese cherry chestnut chick chimney chisel cider cinnamon clay cliff \
        cloak clock cloud clover coal coat cobweb cone copper coral corn cottage cotton cow crab cradle crane cream creek cricket crow \
        crumb crust cupboard curtain cushion daisy dandelion dawn deer desert dew ditch dog donkey door dough dove dragonfly drum duck \
        dumpling dusk eagle ear earth elbow elm embroidery eyebrow falcon farm feather fence fern ferry fiddle fig finch finger fireplace \
        fisherman flame flask flea flood flour flute foal fog forest fountain fox frog frost fur furrow galaxy garlic gate ginger glacier \
        glove goat goose gorge grain grape grass gravel grove gull hail hammer hamster hare harp hawk hay hazel heart hedge hen herb hill \
        hinge honey hood hoof horizon horn horse hut ice icicle ink island ivory ivy jacket jar jasmine jug juice juniper kettle kitchen \
        kite kitten knee knife knot ladder ladle lake lamb lamp lantern lark lavender leaf leather lemon lettuce lichen lighthouse lily \
        linen lizard loaf lobster log loom lullaby lynx magnolia maple marble marsh meadow melon milk mill mint mirror mole moon moose \
        moss moth mountain mouse mouth mud mushroom mustard nail neck needle nest nettle night nut oak oar oat ocean olive onion orchard \
        orchid otter oven owl ox oyster paddle pancake panther parrot parsley pasture path peach peacock peak pear pearl pebble pepper \
        pheasant pie pig pigeon pillow pine pitcher plank plate plough plum pond poplar poppy porch porridge potato pudding puddle pumpkin \
        puppy quail quarry quilt rabbit radish rafter rain rainbow raspberry raven reed ridge ring river robin rock roof root rope rose \
        rowan rug rust saddle sage sail salmon salt sand sandal saucer sausage scarf scissors sea seal seaweed shadow shawl sheep shell \
        shirt shore shoulder shovel shrimp silk silver sky sleeve slope snail snake snow soap sock soil soup sparrow spice spider spinach \
        spindle spoon spring squirrel stable star stew stocking stone storm stove straw stream summer sun swallow swamp swan tadpole tea \
        thistle thorn thread throat thumb thunder tide toad toast tomato tongue tooth torch tortoise tower trout trunk tulip tunnel turnip \
        turtle twig valley vine vinegar violet walnut wasp waterfall wave wax weather weed well whale wheat whistle willow wind windmill \
        wing winter wolf wood wool worm wreath yarn yeast yoghurt",
    verbs: "admire amble annoy appear bake bathe beckon blink blossom boil borrow bounce bow braid brush burn bury carve chase cheer chew \
        chirp clatter clean climb comb cook cough cover crackle crawl creak croak crumble cuddle curl dance dangle dazzle dig dip dive \
        douse drench drift drizzle dry dust embrace fade fasten feast flicker float flutter fold gallop gather gaze giggle glimmer gnaw \
        graze grill groan growl guess hail harvest hatch hike hoist howl hum hunt itch jingle juggle jump kick kneel knock laugh lean \
        listen loosen mend milk mix moan mow mumble nibble nod paint peel perch pickle plant pluck polish pour purr quench rake rattle \
        rest rinse roam roar roast row rub rustle scatter scrape scratch scrub shiver shout sigh sip ski skip slice smell smile sneeze \
        sniff snore soak sob soothe sparkle splash sprinkle sprout squeak stir stitch stroke stroll stumble suck swirl taste thaw tickle \
        toss trim tumble twinkle twist unwrap vanish wade wander warm wash waste water weave whisper whittle wiggle wink wrap yawn yell",
    adjectives: "ancient autumnal bald barefoot bitter blond blue blunt brave breezy brisk bristly brown bumpy calm chilly clumsy coarse \
        cosy crimson crisp crooked cruel curly damp dark dim dreamy drowsy dusty eager elderly faint feeble fierce flimsy fluffy foggy \
        fragrant frail freckled frosty furry gentle gloomy golden graceful greasy green grey grumpy hairy harsh hazy hoarse hollow humble \
        hungry icy jagged jolly juicy keen lazy leafy lively loud lukewarm lumpy mellow merry mild misty mossy muddy muffled naughty \
        nimble noisy orange pale patient peaceful pink plump polite prickly proud purple quaint quiet ragged ripe rosy rough round \
        rusty scarlet shaggy shallow sharp shiny shy silent sleepy slender slim slippery sloppy smooth soft sour spotted steep sticky \
        striped stubborn sturdy sunny sweet tame tangled tasty tender thirsty tidy timid tiny tough twisted velvety warm weary wet wild \
        wise wooden woolly wrinkled yellow",
    adverbs: "afterwards aloud anyway apart ashore aside away awhile backwards barely beneath bravely briskly crossly cheerfully \
        downhill downstairs drowsily everywhere farther forever fondly gently gladly grimly happily hardly homewards indoors inland \
        inside instead kindly lazily loudly merrily nearby neatly nowhere often once outdoors outside overhead patiently perhaps playfully \
        proudly quietly rarely sadly seldom sideways silently sleepily slowly softly someday sometimes somewhere sweetly tenderly tightly \
        together twice underneath uphill upstairs upwards warmly wildly",
    syllables: "ba bre dal dor el fen fir gal gri hal hol il jar kel kir lan lis lor mar mel mor nan nel ol per quin ral rin ros sel sil \
        tam tir tol ul van ver vin wel wyn yar zel zor",
    patterns: &[
        "the A N D B.",
        "we D the S and D a A N by the N.",
        "B a N D behind the N, and nobody D.",
        "did you V the N or only the S?",
        "P D the A S near P.",
        "my N is A, yours was A and B A.",
        "it D all night, so the N was A.",
        "0 S D above P.",
        "we shall V the N before the A S V.",
        "G S makes one A, said P.",
        "nothing D but the N.",
        "do V 0 S, a N and some A N.",
        "where the N D, there is a A N.",
        "P and P D B under a A N.",
        "never V a N while the S V!",
        "she D: the S are A, the N is not.",
        "under the N we found 0 A S.",
        "what a A N!",
        "grandmother D the N with N and N.",
        "they say that S V B when the N is A.",
        "bring the A N, the S and whatever P D.",
        "if the N were A, who would V it B.",
    ],
};
