// The numbers of the NBD protocol, by the section of the specification (doc/proto.md of the nbd project) that has them.

// "Protocol phases", "Handshake": 64-bit magics as two halves, since no request may cost a BigInt.
/** `NBDMAGIC`. */
export const NBD_MAGIC_HIGH = 0x4e42444d;
export const NBD_MAGIC_LOW = 0x41474943;
/** `IHAVEOPT`. */
export const OPTION_MAGIC_HIGH = 0x49484156;
export const OPTION_MAGIC_LOW = 0x454f5054;
export const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
export const OPTION_REPLY_MAGIC_LOW = 0x045565a9;
/** What old-style servers send in the place of IHAVEOPT. */
export const OLD_STYLE_MAGIC_HIGH = 0x00004202;
export const OLD_STYLE_MAGIC_LOW = 0x81861253;

/** The port that IANA gave NBD. */
export const NBD_DEFAULT_PORT = 10809;

// "Fixed newstyle negotiation": lengths in bytes.
/** Magic, magic, handshake flags. */
export const GREETING_BYTE_LENGTH = 18;
/** Magic, option, length. */
export const OPTION_HEADER_BYTE_LENGTH = 16;
/** Magic, option, reply type, length. */
export const OPTION_REPLY_HEADER_BYTE_LENGTH = 20;
/** "Terminology": no string is longer. */
export const MAX_STRING_BYTE_LENGTH = 4096;

// "Handshake flags" and "Client flags".
export const FLAG_FIXED_NEWSTYLE = 1 << 0;
export const FLAG_NO_ZEROES = 1 << 1;

// "Option types".
export const OPT_EXPORT_NAME = 1;
export const OPT_ABORT = 2;
export const OPT_LIST = 3;
export const OPT_STARTTLS = 5;
export const OPT_INFO = 6;
export const OPT_GO = 7;
export const OPT_STRUCTURED_REPLY = 8;
export const OPT_LIST_META_CONTEXT = 9;
export const OPT_SET_META_CONTEXT = 10;
export const OPT_EXTENDED_HEADERS = 11;

// "Option reply types".
export const REP_ACK = 1;
export const REP_SERVER = 2;
export const REP_INFO = 3;
export const REP_META_CONTEXT = 4;
/** Set in every reply type that is an error. */
export const REP_ERROR_BIT = 0x8000_0000;
export const REP_ERR_UNSUP = 0x8000_0001;
export const REP_ERR_POLICY = 0x8000_0002;
export const REP_ERR_INVALID = 0x8000_0003;
export const REP_ERR_PLATFORM = 0x8000_0004;
export const REP_ERR_TLS_REQD = 0x8000_0005;
export const REP_ERR_UNKNOWN = 0x8000_0006;
export const REP_ERR_SHUTDOWN = 0x8000_0007;
export const REP_ERR_BLOCK_SIZE_REQD = 0x8000_0008;
export const REP_ERR_TOO_BIG = 0x8000_0009;
export const REP_ERR_EXT_HEADER_REQD = 0x8000_000a;

// "NBD_INFO information types".
export const INFO_EXPORT = 0;
export const INFO_NAME = 1;
export const INFO_DESCRIPTION = 2;
export const INFO_BLOCK_SIZE = 3;

// "Transmission flags".
export const TRANSMISSION_HAS_FLAGS = 1 << 0;
export const TRANSMISSION_READ_ONLY = 1 << 1;
export const TRANSMISSION_SEND_FLUSH = 1 << 2;
export const TRANSMISSION_SEND_FUA = 1 << 3;
export const TRANSMISSION_ROTATIONAL = 1 << 4;
export const TRANSMISSION_SEND_TRIM = 1 << 5;
export const TRANSMISSION_SEND_WRITE_ZEROES = 1 << 6;
export const TRANSMISSION_SEND_DF = 1 << 7;
export const TRANSMISSION_CAN_MULTI_CONN = 1 << 8;
export const TRANSMISSION_SEND_CACHE = 1 << 10;
export const TRANSMISSION_SEND_FAST_ZERO = 1 << 11;
export const TRANSMISSION_BLOCK_STATUS_PAYLOAD = 1 << 12;

// "Request message" and "Simple reply message".
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const REQUEST_BYTE_LENGTH = 28;
export const SIMPLE_REPLY_BYTE_LENGTH = 16;

// "Structured reply chunk message".
export const CHUNK_MAGIC = 0x668e33ef;
export const CHUNK_BYTE_LENGTH = 20;
export const CHUNK_FLAG_DONE = 1 << 0;
export const CHUNK_NONE = 0;
export const CHUNK_OFFSET_DATA = 1;
export const CHUNK_OFFSET_HOLE = 2;
export const CHUNK_BLOCK_STATUS = 5;
export const CHUNK_BLOCK_STATUS_EXT = 6;
/** Set in every chunk type that is an error. */
export const CHUNK_ERROR_BIT = 0x8000;
export const CHUNK_ERROR = 0x8001;
export const CHUNK_ERROR_OFFSET = 0x8002;

// "Extended headers" (the extension of that name).
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;
export const EXTENDED_REQUEST_BYTE_LENGTH = 32;
export const EXTENDED_REPLY_BYTE_LENGTH = 32;

// "Metadata querying".
export const BASE_NAMESPACE = 'base:';
export const BASE_ALLOCATION = 'base:allocation';
export const QEMU_NAMESPACE = 'qemu:';
/** How many layers down what is allocated lies; a word of QEMU's (its docs/interop/nbd.txt). */
export const QEMU_ALLOCATION_DEPTH = 'qemu:allocation-depth';
/** "Metadata querying": extents in one reply at most. */
export const MAX_STATUS_EXTENT_COUNT = 1 << 20;

// "Request types".
export const CMD_READ = 0;
export const CMD_WRITE = 1;
export const CMD_DISC = 2;
export const CMD_FLUSH = 3;
export const CMD_TRIM = 4;
export const CMD_CACHE = 5;
export const CMD_WRITE_ZEROES = 6;
export const CMD_BLOCK_STATUS = 7;

// "Command flags".
export const CMD_FLAG_FUA = 1 << 0;
export const CMD_FLAG_NO_HOLE = 1 << 1;
export const CMD_FLAG_DF = 1 << 2;
export const CMD_FLAG_REQ_ONE = 1 << 3;
export const CMD_FLAG_FAST_ZERO = 1 << 4;
/** Extended headers: the length is that of the data that follows. */
export const CMD_FLAG_PAYLOAD_LEN = 1 << 5;

/** "Block size constraints": a payload that a side takes when nothing was said about block sizes. */
export const DEFAULT_MAX_PAYLOAD_BYTE_LENGTH = 32 * 1024 * 1024;
