// PouchDB's replication, driven by lines of JSON: see sync/client.rs, which says what they mean.
// node client.js FOLDER URL DOCUMENTS_A_BATCH
'use strict';
const PouchDB = require('pouchdb');
const [folder, url, batch] = process.argv.slice(2);
const options = { batch_size: Number(batch) };
const copies = new Map();

async function copy(device) {
  if (!copies.has(device)) {
    const made = new PouchDB(`${folder}/${device}`);
    await made.info();
    copies.set(device, made);
  }
  return copies.get(device);
}

const doing = {
  async pull({ device }) {
    const { docs_written: items } = await PouchDB.replicate(url, await copy(device), options);
    return { items };
  },
  async push({ device }) {
    const { docs_written: items } = await PouchDB.replicate(await copy(device), url, options);
    return { items };
  },
  async edit({ device, edits }) {
    const local = await copy(device);
    const ids = edits.map((edit) => `${edit.collection}:${edit.key}`);
    const { rows } = await local.allDocs({ keys: ids });
    const documents = edits.map((edit, at) => {
      const rev = rows[at].value && rows[at].value.rev;
      return { ...edit.value, _id: ids[at], ...(rev && { _rev: rev }) };
    });
    const results = await local.bulkDocs(documents);
    return { items: results.filter((result) => result.ok).length };
  },
  async show({ device, collection, key }) {
    const local = await copy(device);
    const { doc_count: items } = await local.info();
    return { items, value: await local.get(`${collection}:${key}`) };
  },
};

async function main() {
  for await (const line of require('readline').createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    // Opening a copy is no part of it.
    await copy(order.device);
    const start = process.hrtime.bigint();
    const done = await doing[order.do](order);
    const seconds = Number(process.hrtime.bigint() - start) / 1e9;
    process.stdout.write(JSON.stringify({ seconds, ...done }) + '\n');
  }
  process.exit(0);
}

main().catch((error) => {
  process.stderr.write(`${error.stack || error}\n`);
  process.exit(1);
});
