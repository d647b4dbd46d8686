// The public entry of dmkit.
export { version } from './block/version.ts';
