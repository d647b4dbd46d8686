// The requests, done on the mapped devices of this process.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { keepMarks } from '../overlays/store-life.ts';
import { runBatch } from './batch.ts';
import type { ClientInfo, ControlHost, RequestContext } from './core/host.ts';
import { Plane, type PlaneHooks } from './core/plane.ts';
import { DeviceOperations, type Translator } from './devices.ts';
import type { DaemonOperations, Operations } from './operations.ts';
import { OverlayOperations } from './overlay-operations.ts';
import type { Recovery } from './recovery.ts';
import { type Control, REQUESTS, type Reply, type RequestArgs, type RequestName } from './requests.ts';
import { type Fields, objection } from './schema.ts';

export interface LocalControlOptions extends ControlHost, PlaneHooks {
  /** How a load's device arguments are to be read, for a caller in `folder`. */
  translate?: Translator;
  /** The process is a daemon. */
  daemon?: DaemonOperations;
}

/** Devices of this process, asked as a daemon is. */
export class LocalControl implements Control {
  readonly plane: Plane;
  readonly operations: Operations;
  /** Set by a process that keeps a journal. */
  recovery: Recovery | null = null;

  constructor(options: LocalControlOptions) {
    const { translate = () => (argument: string) => argument, daemon, onChange, onError, ...host } = options;
    const hooks: PlaneHooks = {};
    if (onChange !== undefined) hooks.onChange = onChange;
    if (onError !== undefined) hooks.onError = onError;
    this.plane = new Plane(host, hooks);
    keepMarks(this.plane);
    const devices = new DeviceOperations(this.plane, translate);
    const overlays = new OverlayOperations(this.plane, (address) => devices.find(address));
    this.operations = {
      devices,
      overlays,
      batch: (steps, context) => runBatch(this.plane, { devices, overlays }, steps, context),
      recovery: () => this.recovery ?? notHere('a journal'),
      daemon: () => daemon ?? notHere('a daemon'),
    };
  }

  async call<Name extends RequestName>(
    name: Name,
    args: RequestArgs<Name>,
    context: RequestContext & { client?: ClientInfo } = {},
  ): Promise<Reply<Name>> {
    const request = REQUESTS[name];
    const problem = objection(request.args, args as Fields);
    if (problem !== null) throw new DmError(Errno.EINVAL, `${name}: ${problem}`);
    return (await request.run(this.operations, args as never, context)) as Reply<Name>;
  }
}

function notHere(thing: string): never {
  throw new DmError(Errno.EOPNOTSUPP, `this process has no devices of ${thing}: ask a daemon`);
}
