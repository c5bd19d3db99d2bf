// MongoDB's user of orders: an example, for mongosh as an administrator, which asks for the password:
//
//   mongosh "mongodb+srv://orders.mongodb.example.com/" --username admin mongodb.js
//
// A user has one password, so a second user, `orders_b`, takes turns with the first when it is changed: docs/operations.md.
//
// It may read and change orders, create indexes, and count in the collection `barriers`, but neither remove orders nor see
// another database.
const orders = db.getSiblingDB("orders");
orders.createRole({
  role: "orders",
  privileges: [
    {
      resource: { db: "orders", collection: "orders" },
      actions: ["find", "insert", "update", "createCollection", "createIndex", "listIndexes", "dropIndex", "collStats", "indexStats"],
    },
    { resource: { db: "orders", collection: "barriers" }, actions: ["find", "insert", "update"] },
  ],
  roles: [],
});
orders.createUser({
  user: "orders",
  pwd: passwordPrompt(),
  roles: ["orders"],
  mechanisms: ["SCRAM-SHA-256"],
});
