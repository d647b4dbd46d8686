// Every bound of the control socket and of the daemon, with its reason.

/** The JSON of one request: names, numbers, and the lines of a batch. Tables travel behind it. */
export const MAX_REQUEST_BYTE_LENGTH = 1024 * 1024;
/** Braces inside braces of a request: the deepest one there is has 6. */
export const MAX_REQUEST_DEPTH = 16;
/** The tables behind one message. One of a million lines, the longest there is, takes about a fifth of it. */
export const MAX_TEXT_BYTE_LENGTH = 256 * 1024 * 1024;
/** The JSON of an answer: a daemon is trusted, but a length that is garbage must not be waited for. */
export const MAX_REPLY_BYTE_LENGTH = 256 * 1024 * 1024;
/** Clients at one time; one more is closed at once. Each command is one. */
export const MAX_CLIENT_COUNT = 256;
/** Requests of one client under way at one time: nothing more is read from it until one has ended. */
export const MAX_CLIENT_REQUEST_COUNT = 256;
/** Messages of one client that are looked at before others get their turn, and before its own answers are counted again. */
export const MAX_CLIENT_TURN_COUNT = 16;
/** Bytes of answers that a client has not taken: nothing more is read from it until it takes them. */
export const MAX_CLIENT_REPLY_BYTE_LENGTH = 1024 * 1024;
/** A log longer than this goes on in a new file; the one before it is kept as `daemon.log.1`. */
export const MAX_LOG_BYTE_LENGTH = 1024 * 1024;
/** How long a stopping daemon waits for requests in flight. */
export const STOP_TIMEOUT_MILLISECONDS = 5_000;
