// The replica set by the pod's DNS name, the user root, and orders' user, at home in its own database only.
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

function until(what, test) {
  const end = Date.now() + 60000;
  while (!test()) {
    if (Date.now() > end) throw new Error("waited for a minute: " + what);
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

// Without users yet, a connection from the machine itself may do this. The name must lead here before it can.
if (!known && !admin.hello().setName) {
  until(member + " leads to this pod", () =>
    succeeds(() => admin.runCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: member }] } }).ok || fail()));
}
until("this server is the primary", () => admin.hello().isWritablePrimary);

if (!known) {
  try {
    admin.createUser({ user: "root", pwd: ROOT_PASSWORD, roles: ["root"] });
  } catch (e) {
    throw new Error("this volume has a root user with another password than the Secret's: " + e.message);
  }
  admin.auth("root", ROOT_PASSWORD);
}
const roles = [{ role: "readWrite", db: "orders" }];
if (orders.getUser("orders")) orders.updateUser("orders", { pwd: ORDERS_PASSWORD, roles });
else orders.createUser({ user: "orders", pwd: ORDERS_PASSWORD, roles });
print("replica set rs0 with " + member + ", users root and orders");
