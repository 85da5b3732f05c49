/**
 * What a device and the gateway say to each other: one struct `Up` in each MQTT
 * PUBLISH to topic `up`, one struct `Down` in each PUBLISH on topic `down`,
 * Thrift compact protocol, at most 128 KiB. docs/PROTOCOL.md tells the story.
 *
 * `Up` and `Down` are structs of which exactly one of the optional kinds is set
 * (besides `request`). Unknown fields are skipped; unknown kinds are answered
 * with ResultCode.UNKNOWN_KIND.
 */
namespace rs carillon.device
namespace py carillon_device

/** The four kinds of queue that a registration can follow. */
enum QueueKind {
  OWN = 1,
  ALIAS = 2,
  TOPIC = 3,
  ALL = 4,
}

/** A queue as one registration names it. `name` is set for ALIAS and TOPIC only. */
struct Queue {
  1: required QueueKind kind,
  2: optional string name,
}

/** How far the device has come in one queue: all up to and including `seq` is handled. */
struct Position {
  1: required Queue queue,
  2: required i32 epoch,
  3: required i64 seq,
  /** The tag of the delta that ended at this position, unchanged; absent if none was given. */
  4: optional binary tag,
}

/** A snapshot of which the device keeps some chunks: all from the first on. */
struct Gathered {
  1: required Queue queue,
  /** Its position and the tag of that, as in SnapshotChunk. */
  2: required i32 epoch,
  3: required i64 at_seq,
  4: required binary tag,
  /** `cursor` of the last chunk that is kept, unchanged; absent: all chunks are there. */
  5: optional binary cursor,
  /** All chunks are there, and the deltas after at_seq up to this one. */
  6: optional i64 reached_seq,
}

/** All positions of one registration. */
struct RegistrationPositions {
  1: required string regid,
  2: required list<Position> positions,
  3: optional list<Gathered> gathered,
}

// ---------------------------------------------------------------- uplink

/** The first frame of a connection: sent right behind CONNECT, without waiting. */
struct Resume {
  /** The digest of all positions of all registrations on the device. */
  1: required i64 digest,
  /** The newest dictionary of docs/PROTOCOL.md that the device has: frames may come as Packed. */
  2: optional i32 dictionary,
}

/** The answer to AskPositions, or sent at any time by a device that missed something. */
struct Positions {
  1: required list<RegistrationPositions> registrations,
  /** Further Positions follow at once: registrations that are not named yet come later. */
  2: optional bool more,
}

/** A key pair that the device has made, for an app that seals its payloads. */
struct SealOffer {
  /** Which of the app's keys it is agreed with. */
  1: required i32 app_key,
  /** The public half, X25519. */
  2: required binary public_key,
}

/**
 * What filters of messages look at: see Describe. Each at most 64 bytes without control
 * characters; a message that asks for one that is absent is not delivered.
 */
struct Attributes {
  /** Numbers with dots: `2.10.3`. What follows the first other character does not count. */
  1: optional string app_version,
  /** A language tag: `de-AT`. */
  2: optional string locale,
  3: optional string model,
  /** The kind of network, in the app's words: `wifi`. */
  4: optional string network,
}

/** Registers one app on this device. Idempotent: the same app gives the same regID. */
struct Register {
  1: required string app_id,
  2: required string app_key,
  /** For sealed payloads: the same pair again gives the same regID, another one a new regID. */
  3: optional SealOffer seal,
  /** As by Describe; absent: what was described before stays. */
  4: optional Attributes attributes,
}

/** Changes the key of a sealed registration. The same again gives the same answer. */
struct Rekey {
  1: required string regid,
  2: required SealOffer seal,
  /** Made with the present key: only who holds it may change it. */
  3: required binary proof,
}

/** From now on the registration has these attributes and no others. */
struct Describe {
  1: required string regid,
  2: required Attributes attributes,
}

struct Unregister {
  1: required string regid,
}

/** `token` is needed where the app's alias policy is `signed`. */
struct Bind {
  1: required string regid,
  2: required string alias_name,
  3: optional string token,
}

struct Unbind {
  1: required string regid,
  2: required string alias_name,
}

struct Subscribe {
  1: required string regid,
  2: required list<string> topics,
}

struct Unsubscribe {
  1: required string regid,
  2: required list<string> topics,
}

/**
 * How idle gaps fared on one network, in seconds between a packet and the next. At most one
 * a minute is heard. Never more than `keep_alive`; a gap of 0 is not reported.
 */
struct HeartbeatReport {
  /** The device's name for the network: an opaque key of at most 64 bytes, equal for all devices of one operator or access point. */
  1: required string network,
  /** The longest gap of this connection after which the gateway still answered. */
  2: optional i32 survived_s,
  /** The gap after which the previous connection was found dead. */
  3: optional i32 died_s,
}

/** What somebody did with a message. */
enum EventKind {
  /** It was opened. */
  CLICKED = 1,
}

/** Something happened to a message of this registration. Of one that does not ask for receipts it is ignored. */
struct Event {
  1: required string regid,
  /** `id` of the message's Entry. */
  2: required binary message,
  3: required EventKind kind,
}

/**
 * When the registration takes messages, instead of what was said before. Without any of the optional fields: always.
 * Hours are of every day on the clocks of the zone, from start_minute until before end_minute, 0 to 1439; over midnight if
 * they end before they begin. All three of them or none.
 */
struct Accept {
  1: required string regid,
  /** Nothing is taken until this is taken back. */
  2: optional bool paused,
  3: optional i32 start_minute,
  4: optional i32 end_minute,
  /** A name of the IANA database like Europe/Berlin, or an offset like +08:00. */
  5: optional string zone,
}

/** How the value of an item is written. */
enum ValueFormat {
  /** A JSON document. */
  JSON = 1,
  /** A Thrift struct of the app's own. */
  THRIFT = 2,
}

/** One change of one item that a device has made. */
struct Edit {
  /** 1, 2, 3… over all uploads of this registration to this alias, with no hole. */
  1: required i64 cseq,
  2: required string collection,
  3: required string key,
  /** Absent: the item is deleted. At most 64 KiB. */
  4: optional binary value,
  /** Absent: JSON. */
  5: optional ValueFormat format,
  /** Up to which seq of the alias's queue the device had seen when it made the change. */
  6: required i64 base_seq,
  /** A hybrid clock: milliseconds since 1970 in the upper 48 bits, a counter in the lower 16. */
  7: required i64 clock,
}

/** Changes of collections of an alias, in the order in which they were made. Sent again, it gets the same answer. */
struct Upload {
  1: required string regid,
  2: required string alias_name,
  /** The epoch of the base_seqs. */
  3: required i32 epoch,
  4: required list<Edit> edits,
}

/** The items of a collection whose keys are from `first` on and before `before`, in the order of their bytes. */
struct KeyRange {
  1: required string first,
  /** Absent: up to the last. */
  2: optional string before,
  /** How many items are there, and the digest of them: see docs/PROTOCOL.md. */
  3: required i64 items,
  4: required i64 digest,
}

/** The device's collection differs from the digest that it was given: it says what it holds. */
struct Repair {
  1: required string regid,
  2: required string alias_name,
  3: required string collection,
  /** The position at which the device's items are as stated here. */
  4: required i32 epoch,
  5: required i64 seq,
  /** At most 16, in order, not overlapping. */
  6: required list<KeyRange> ranges,
}

struct Up {
  /** Chosen by the device and echoed in the Result; 0 if absent. */
  1: optional i64 request,
  2: optional Resume resume,
  3: optional Positions positions,
  4: optional Register register_app,
  5: optional Unregister unregister,
  6: optional Bind bind,
  7: optional Unbind unbind,
  8: optional Subscribe subscribe,
  9: optional Unsubscribe unsubscribe,
  10: optional HeartbeatReport heartbeat,
  11: optional Describe describe,
  12: optional Accept accept,
  13: optional Event event,
  14: optional Rekey rekey,
  15: optional Upload upload,
  16: optional Repair repair,
}

// -------------------------------------------------------------- downlink

enum ResultCode {
  OK = 0,
  /** The frame is not a valid Up. */
  MALFORMED = 1,
  /** None of the kinds that this gateway knows is set, or more than one. */
  UNKNOWN_KIND = 2,
  /** A name, list or token is out of its bounds. */
  INVALID = 3,
  /** Unknown regid on this device, or wrong app_id or app_key. */
  NOT_FOUND = 4,
  /** The app's policy does not allow this, or the token is not valid. */
  FORBIDDEN = 5,
  /** Too many aliases, topics or registrations. */
  LIMIT = 6,
  /** Try again later, with jitter. */
  UNAVAILABLE = 7,
  /** The app seals its payloads: register with a key. */
  SEALED = 8,
  /** The edits' cseqs do not go on where the gateway is, so that none was taken anew: number those without a result from `next_cseq` on. */
  RENUMBER = 9,
}

/** The registration has this key now. */
struct SealAnswer {
  /** 1 at first, and one more with each change. */
  1: required i32 number,
  /** Made with the key: the gateway has the same one. */
  2: required binary confirmation,
}

/** What became of one change. */
enum EditOutcome {
  /** It stands as it was made. */
  APPLIED = 1,
  /** It stands together with what others made of the item. */
  MERGED = 2,
  /** It is kept under a key of its own. */
  COPIED = 3,
  /** What is there stays. */
  LOST = 4,
  /** It cannot be read under the collection's rule; nothing changed. */
  INVALID = 5,
}

struct EditResult {
  1: required i64 cseq,
  2: required EditOutcome outcome,
  /** The entry that it led to. */
  3: optional i64 seq,
  /** For humans, with INVALID. */
  4: optional string message,
}

/** The range differs: the gateway's items there, or smaller ranges to compare. */
struct RepairedRange {
  1: required KeyRange range,
  /** All that the gateway holds in the range; the device replaces what it has there. */
  2: optional list<Item> items,
  /** In the place of items: the digests of its parts. State those that differ in a further Repair. */
  3: optional list<KeyRange> parts,
}

/** An item of a collection as it stands. */
struct Item {
  1: required string collection,
  2: required string key,
  /** The change that made it so. */
  3: required i64 seq,
  4: required binary value,
  /** Absent: JSON. */
  5: optional ValueFormat format,
  6: optional i64 clock,
}

/** The answer to every Up but Resume and Positions. */
struct Result {
  1: required i64 request,
  2: required ResultCode code,
  /** For humans; set when `code` is not OK. */
  3: optional string message,
  /** Set by Register. */
  4: optional string regid,
  /** Set by Register with a key, and by Rekey. */
  5: optional SealAnswer seal,
  /** Set by Upload: one for each edit. With UNAVAILABLE, LIMIT or RENUMBER: those before the first that was not taken. */
  6: optional list<EditResult> edits,
  /** Set by Repair: the ranges that differ. None: all are equal. */
  7: optional list<RepairedRange> ranges,
  /** Set with RENUMBER, and by an Upload without edits: the number that the gateway expects next of this registration and alias. */
  8: optional i64 next_cseq,
}

/** The answer to Resume and Positions: pushing starts now. */
struct Resumed {
  /** The registrations that the gateway holds for this device. */
  1: optional list<string> regids,
}

/** The digest differs: state your positions. */
struct AskPositions {
}

/** Why a delta does not continue the position that the device stated. */
enum JumpReason {
  /** The device has no position in this queue. */
  NEW = 1,
  /** The queue changed its epoch after the stated position. */
  EPOCH_CHANGED = 2,
  /** The stated position is older than what the queue still holds. */
  OVERFLOW = 3,
  /** The gateway lost data that this device has proof of. */
  AHEAD = 4,
  /** A snapshot is smaller than the changes that the device missed. */
  SMALLER = 5,
}

struct Notification {
  1: optional string title,
  2: optional string body,
  /** Further fields of the sender's `notification`, as one JSON object. */
  3: optional string extra,
}

/** The registration follows `queue` from (epoch, since) on: that is its position there. */
struct Follow {
  1: required Queue queue,
  2: required i32 epoch,
  3: required i64 since,
}

struct Unfollow {
  1: required Queue queue,
}

/** What is sealed of a message. */
struct Content {
  /** As in Entry. */
  1: optional binary payload,
  2: optional Notification notification,
}

enum ChangeKind {
  NEW = 1,
  UPDATE = 2,
  DELETE = 3,
}

/** An item of a collection changed. */
struct Change {
  1: required string collection,
  2: required string key,
  3: required ChangeKind kind,
  /** Absent when it is deleted, and when the device's own edit (`cseq`) stands as it was made. */
  4: optional binary value,
  /** Absent: JSON. */
  5: optional ValueFormat format,
  6: optional i64 clock,
  /** The device's own edit led to this. */
  7: optional i64 cseq,
}

/**
 * One entry of a queue. A message has an `id`; a control entry has `follow` or `unfollow`; one
 * with `recall` alone takes a message back.
 */
struct Entry {
  1: required i64 seq,
  2: optional binary id,
  /** Milliseconds since 1970, when the gateway accepted it. */
  3: optional i64 time_ms,
  /** As sent: compact JSON, or the bytes of payload_b64. */
  4: optional binary payload,
  5: optional Notification notification,
  6: optional Follow follow,
  7: optional Unfollow unfollow,
  /** The id of a message that its sender takes back. The device may never have had it. */
  8: optional binary recall,
  /** A sealed Content, in the place of `payload` and `notification`. */
  9: optional binary sealed,
  10: optional Change change,
}

/**
 * The entries of [from_seq..to_seq] of one queue that concern this registration. Numbers
 * in the range without an entry were skipped on purpose. Apply it only if from_seq is the
 * last handled seq + 1, or `jump` is set; of an overlap only the suffix.
 */
struct Delta {
  1: required Queue queue,
  2: required i32 epoch,
  3: required i64 from_seq,
  4: required i64 to_seq,
  /** Proof that the gateway gave (epoch, to_seq); keep it with the position. */
  5: required binary tag,
  6: required list<Entry> entries,
  7: optional JumpReason jump,
  /** Of a shared queue: the key of each sealed entry, wrapped for this registration, 32 bytes each, in their order. */
  8: optional binary wrapped_keys,
  /** Set where an entry is sealed: the number of the registration's key. */
  9: optional i32 key_number,
}

/** What a collection is at `seq` of its alias's queue, the newest change in it: see docs/PROTOCOL.md. */
struct CollectionDigest {
  1: required Queue queue,
  2: required i32 epoch,
  3: required string collection,
  4: required i64 seq,
  5: required i64 items,
  6: required i64 digest,
}

/** Acknowledged as a whole by the PUBACK of its PUBLISH. */
struct Deltas {
  1: required string regid,
  2: required list<Delta> deltas,
  /** With the last frame of a resume, and now and then: compare what has the same seq. */
  3: optional list<CollectionDigest> digests,
}

/**
 * A part of the folded collections of one queue, newest items first. Deltas from at_seq + 1 on follow the last chunk.
 * The device gathers chunks beside its items and takes them in their place when it has come to `until_seq`.
 */
struct SnapshotChunk {
  1: required string regid,
  2: required Queue queue,
  /** Why it is not a delta. */
  3: required JumpReason jump,
  4: required i32 epoch,
  /** The position of the snapshot, and the proof of it: as in Delta. */
  5: required i64 at_seq,
  6: required binary tag,
  7: required list<Item> items,
  /** Where the next chunk begins: keep it with the position. Absent in the last chunk. */
  8: optional binary cursor,
  /** Set in the last chunk: from this seq on what was gathered, with the deltas up to it, is exact. */
  9: optional i64 until_seq,
  /** The first chunk: what was gathered before is void. */
  10: optional bool begins,
}

/** A Down, compressed by zstd with a dictionary of docs/PROTOCOL.md. */
struct Packed {
  1: required i32 dictionary,
  /** How long it is unpacked: at most 128 KiB. */
  2: required i32 bytes,
  3: required binary zstd,
}

/** The gateway asks the device to act: come back later, or come back at once. */
struct Advice {
  /** Reconnect not before this many milliseconds. */
  1: optional i64 reconnect_after_ms,
  /** Reconnect there, `host:port`, same transport; absent: where it is now. */
  2: optional string server,
  /** The interval that survives on the device's network, as far as the gateway's fleet knows. */
  3: optional i32 heartbeat_s,
}

/** Why a registration is no more. */
enum EndReason {
  /** The device or the app server ended it. */
  UNREGISTERED = 1,
  /** The device did not connect for too long. It may register again at once, and bind and subscribe as before. */
  EXPIRED = 2,
}

/** This registration is no more: forget it, register again if the app still wants it. */
struct Ended {
  1: required string regid,
  /** Where the gateway still knows. */
  2: optional EndReason reason,
}

struct Down {
  1: optional Result result,
  2: optional Deltas deltas,
  3: optional Resumed resumed,
  4: optional AskPositions ask_positions,
  5: optional Advice advice,
  6: optional Ended ended,
  7: optional SnapshotChunk snapshot,
  8: optional Packed packed,
}
