// What a caller holds of something that a device does in its own time.

/** A suspend, a resume or a load under way. */
export interface StateChange {
  /**
   * What a signal does to the process that waits: everything is undone, the device goes on as before, and the callback
   * is not called any more. The table that a resume was about to make live is lost, as in the kernel. Without effect
   * once it is done.
   */
  cancel(): void;
}
