// The package's version, where every layer can reach it: nothing is read at run time.

/** A test keeps it equal to package.json's. */
export const version = '0.1.0';
