// Every bound of the control socket, with its reason.

/** One message. A table of a million lines, the largest there is, takes about half of it. */
export const MAX_MESSAGE_BYTE_LENGTH = 256 * 1024 * 1024;
/** Clients at one time; one more is closed at once. Each command is one. */
export const MAX_CLIENT_COUNT = 256;
/** Requests of one client under way at one time; one more ends the connection. */
export const MAX_CLIENT_REQUEST_COUNT = 1024;
/** The log begins anew when it is longer than this at a start; the old one is kept beside it. */
export const MAX_LOG_BYTE_LENGTH = 1024 * 1024;
/** How long a stopping daemon waits for requests in flight. */
export const STOP_TIMEOUT_MILLISECONDS = 5_000;
