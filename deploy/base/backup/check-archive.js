// mongosh --nodb check-archive.js, with ARCHIVE=FILE: read an archive of mongodump to its end. It is a sequence of BSON
// documents, with 0xFFFFFFFF between blocks: a shortened or overwritten archive breaks the chain of lengths.
const fs = require("fs");
const END_OF_BLOCK = -1;
const file = fs.openSync(process.env.ARCHIVE, "r");
let offset = 0;
let documents = 0;

function read(length) {
  const buffer = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const count = fs.readSync(file, buffer, done, length - done, null);
    if (count === 0) {
      if (done === 0 && length === 4) return null;
      fail("ends in the middle of a document");
    }
    done += count;
  }
  offset += length;
  return buffer;
}

function fail(reason) {
  console.error(`the archive is not readable: ${reason}, at byte ${offset}`);
  process.exit(1);
}

for (let prefix = read(4); prefix !== null; prefix = read(4)) {
  const length = prefix.readInt32LE(0);
  // The magic number at the start, 0x8199e26d.
  if (length === END_OF_BLOCK || (offset === 4 && prefix.readUInt32LE(0) === 0x8199e26d)) continue;
  if (length < 5 || length > 64 * 1024 * 1024) fail(`a document cannot have ${length} bytes`);
  if (read(length - 4)[length - 5] !== 0) fail("a document does not end in a zero byte");
  documents++;
}
if (documents === 0) fail("it has no documents");
