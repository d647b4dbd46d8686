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
