#!/usr/bin/env node
// The command dmkit.
import { version } from '../block/version.ts';

process.stdout.write(`dmkit ${version}\n`);
