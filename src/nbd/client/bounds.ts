// Every bound of the NBD client, with its reason.

/** An option reply's data: a name and a description of 4096 bytes and some. Nothing a server says needs more. */
export const MAX_OPTION_REPLY_BYTE_LENGTH = 16 * 1024;

/** Replies to one option: exports of a LIST. Past it the server is broken or hostile. */
export const MAX_OPTION_REPLY_COUNT = 65_536;

/** From the connection to the answer of GO or LIST. */
export const HANDSHAKE_TIMEOUT_MILLISECONDS = 30_000;

/** Requests that the server has; more wait here. */
export const MAX_REQUEST_COUNT = 256;

/** Bytes not yet sent past which requests wait, too. One request always goes. */
export const MAX_UNSENT_BYTE_LENGTH = 16 * 1024 * 1024;

/** A chunk without data: 65,536 extents, far more than there is use for in one answer; an error's text has less. */
export const MAX_CHUNK_PAYLOAD_BYTE_LENGTH = 4 + 8 * 65_536;

/** Pieces of one READ with gaps between them. Servers send them in order, or by the stripe. */
export const MAX_SCATTERED_PIECE_COUNT = 4096;

/** Of one READ or WRITE where the server names no bound, and where it names one that no memory has. */
export const MAX_PAYLOAD_BYTE_LENGTH = 32 * 1024 * 1024;

/** Connections of one disk. */
export const MAX_CONNECTION_COUNT = 16;
