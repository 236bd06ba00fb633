// A round trip with Chroma's JavaScript client, in two parts with a restart of the server between them:
//   node round_trip.mjs write|read <port> [<token>]
import assert from "node:assert/strict";
import { ChromaClient, K, Knn, Rrf, Schema, Search, SparseVectorIndexConfig } from "chromadb";

const [phase, port, token] = process.argv.slice(2);
const DOCUMENTS = ["The quick brown fox", "A lazy dog", "Zoë's café: 100% 🦊", ""];
const IDS = ["fox", "dog", "ü/%", "empty"];
const METADATAS = [
  { animal: "fox", legs: 4, weight: 4.5, wild: true },
  { animal: "dog", legs: 4, weight: 20.25, wild: false },
  { animal: "none", 'key "with" %s': "value 'quoted'" },
  { animal: "none", legs: 0 },
];

// Letters counted into eight numbers: no model, no download, the same text the same vector.
class Letters {
  name = "letters";

  constructor(config = {}) {
    this.config = config;
  }

  async generate(texts) {
    return texts.map((text) => {
      const vector = new Array(8).fill(0.5);
      for (const letter of text) vector[letter.codePointAt(0) % 8] += 1;
      return vector;
    });
  }

  getConfig() {
    return this.config;
  }

  static buildFromConfig(config) {
    return new Letters(config);
  }
}

const client = new ChromaClient({
  host: "127.0.0.1",
  port: Number(port),
  ssl: false,
  headers: token ? { "x-chroma-token": token } : {},
});
const embeddingFunction = new Letters();

async function write() {
  await search();
  assert.ok((await client.heartbeat()) > 1.7e18);
  assert.equal(await client.version(), "1.0.0");
  const collection = await client.createCollection({
    name: "javascript",
    embeddingFunction,
    metadata: { owner: "npm", number: 1 },
    configuration: { hnsw: { space: "cosine", ef_search: 50 } },
  });
  await assert.rejects(client.createCollection({ name: "javascript", embeddingFunction }), { name: "ChromaUniqueError" });
  await assert.rejects(client.getCollection({ name: "nowhere", embeddingFunction }), { name: "ChromaNotFoundError" });
  await collection.add({ ids: IDS, documents: DOCUMENTS, metadatas: METADATAS });
  assert.equal(await collection.count(), 4);

  const nearest = await collection.query({ queryTexts: ["A lazy dog"], nResults: 2 });
  assert.equal(nearest.ids[0][0], "dog");
  assert.ok(Math.abs(nearest.distances[0][0]) < 1e-5);
  const filtered = await collection.query({
    queryTexts: ["A lazy dog"],
    nResults: 4,
    where: { $and: [{ legs: { $gte: 4 } }, { wild: true }] },
    include: ["documents", "metadatas", "distances"],
  });
  assert.deepEqual(filtered.ids, [["fox"]]);
  assert.deepEqual(filtered.metadatas[0][0], METADATAS[0]);
  const containing = await collection.get({ whereDocument: { $contains: "100%" } });
  assert.deepEqual(containing.ids, ["ü/%"]);
  assert.deepEqual(containing.metadatas, [METADATAS[2]]);

  await collection.update({ ids: ["dog"], documents: ["A dog that works"], metadatas: [{ lazy: false }] });
  await collection.upsert({ ids: ["dog", "cat"], documents: ["A dog at rest", "A cat"], metadatas: [{ legs: 3 }, { legs: 4 }] });
  await assert.rejects(collection.add({ ids: ["bad"], embeddings: [[1, 2, 3]], documents: ["x"] }), /dimension/);
  await collection.delete({ ids: ["empty"] });
  await collection.delete({ where: { animal: "fox" } });
  await collection.modify({ name: "renamed", metadata: { owner: "npm", renamed: true } });
  const large = await client.getOrCreateCollection({ name: "large", embeddingFunction });
  const ids = Array.from({ length: 2000 }, (_, number) => `id-${number}`);
  await large.add({ ids, embeddings: ids.map((_, number) => [number, 1, 2]) });
}

async function search() {
  const schema = new Schema().createIndex(new SparseVectorIndexConfig({}), "words");
  const collection = await client.createCollection({ name: "searched", schema, embeddingFunction: null });
  const words = [{ indices: [1, 2], values: [1, 0.5] }, { indices: [2], values: [1] }, { indices: [9], values: [1] }];
  await collection.add({
    ids: ["a", "b", "c"],
    embeddings: [[1, 0], [0, 1], [1, 1]],
    documents: ["x", "y", "z"],
    metadatas: words.map((vector, number) => ({ number, words: vector })),
  });
  assert.deepEqual((await collection.get({ ids: ["b"] })).metadatas, [{ number: 1, words: words[1] }]);
  const dense = Knn({ query: [1, 0.1], returnRank: true, default: 10 });
  const sparse = Knn({ query: { indices: [2], values: [1] }, key: "words", returnRank: true, default: 10 });
  const rows = (
    await collection.search([
      new Search().where(K("number").gte(1)).rank(Knn({ query: [1, 0.1] })).limit(1).select(K.DOCUMENT),
      new Search().rank(Rrf({ ranks: [dense, sparse] })).select(K.SCORE, "number"),
    ])
  ).rows();
  assert.deepEqual(rows[0], [{ id: "c", document: "z" }]);
  assert.deepEqual(rows[1].map((row) => [row.id, row.metadata]), [["a", { number: 0 }], ["b", { number: 1 }], ["c", { number: 2 }]]);
  const fork = await collection.fork({ name: "searched-fork" });
  assert.equal(await fork.count(), 3);
  assert.equal(await fork.forkCount(), 1);
  assert.equal((await collection.getIndexingStatus()).total_ops, 3);
  await client.deleteCollection({ name: "searched" });
  await client.deleteCollection({ name: "searched-fork" });
}

async function read() {
  // Other clients may have made collections, too.
  const names = (await client.listCollections()).map((entry) => entry.name);
  assert.equal(await client.countCollections(), names.length);
  assert.deepEqual(names.filter((name) => ["javascript", "large", "renamed"].includes(name)).sort(), ["large", "renamed"]);
  const collection = await client.getCollection({ name: "renamed", embeddingFunction });
  assert.deepEqual(collection.metadata, { owner: "npm", renamed: true });
  assert.equal(collection.configuration.hnsw.space, "cosine");
  assert.equal(collection.configuration.hnsw.ef_search, 50);
  const kept = await collection.get({ include: ["documents", "metadatas", "embeddings"] });
  assert.deepEqual(kept.ids, ["dog", "ü/%", "cat"]);
  assert.deepEqual(kept.documents, ["A dog at rest", DOCUMENTS[2], "A cat"]);
  assert.deepEqual(kept.metadatas, [{ ...METADATAS[1], legs: 3, lazy: false }, METADATAS[2], { legs: 4 }]);
  assert.deepEqual(kept.embeddings, await embeddingFunction.generate(kept.documents));
  assert.deepEqual((await collection.peek({ limit: 1 })).ids, ["dog"]);
  const large = await client.getCollection({ name: "large", embeddingFunction });
  assert.equal(await large.count(), 2000);
  const found = await large.query({ queryEmbeddings: [[7.1, 1, 2]], nResults: 3, include: [] });
  assert.deepEqual(found.ids, [["id-7", "id-8", "id-6"]]);
  await client.deleteCollection({ name: "renamed" });
  await client.deleteCollection({ name: "large" });
  assert.equal(await client.countCollections(), names.length - 2);
}

await { write, read }[phase]();
