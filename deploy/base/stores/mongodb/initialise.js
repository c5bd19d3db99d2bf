// Create the replica set under the pod's DNS name, the user root, and the user orders, who can use its own database only.
const { ROOT_PASSWORD, ORDERS_PASSWORD, MEMBER } = process.env;
const member = MEMBER || "mongodb-0.mongodb:27017";

function connect() {
  const end = Date.now() + 120000;
  for (;;) {
    try {
      return new Mongo("mongodb://127.0.0.1:27017/?directConnection=true&serverSelectionTimeoutMS=2000");
    } catch (e) {
      if (Date.now() > end) throw e;
      sleep(200);
    }
  }
}

function waitUntil(condition, test) {
  const end = Date.now() + 60000;
  while (!test()) {
    if (Date.now() > end) throw new Error("timed out after a minute: " + condition);
    sleep(200);
  }
}

function succeeds(action) {
  try {
    action();
    return true;
  } catch (e) {
    return false;
  }
}

const admin = connect().getDB("admin");
const orders = admin.getSiblingDB("orders");
const known = succeeds(() => admin.auth("root", ROOT_PASSWORD));

// While there are no users, a connection from localhost may do this. The name must resolve to this pod first.
if (!known && !admin.hello().setName) {
  waitUntil(member + " resolves to this pod", () =>
    succeeds(() => admin.runCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: member }] } }).ok || fail()));
}
waitUntil("this server is the primary", () => admin.hello().isWritablePrimary);

if (!known) {
  try {
    admin.createUser({ user: "root", pwd: ROOT_PASSWORD, roles: ["root"] });
  } catch (e) {
    throw new Error("the root user on this volume has a different password than the Secret: " + e.message);
  }
  admin.auth("root", ROOT_PASSWORD);
}
const roles = [{ role: "readWrite", db: "orders" }];
if (orders.getUser("orders")) orders.updateUser("orders", { pwd: ORDERS_PASSWORD, roles });
else orders.createUser({ user: "orders", pwd: ORDERS_PASSWORD, roles });
print("replica set rs0 with " + member + ", users root and orders");
