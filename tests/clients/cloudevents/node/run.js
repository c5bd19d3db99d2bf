// Prints the event of one order as the CloudEvents SDK for JavaScript reads it: run.js BROKERS TOPIC ORDER_ID
import { Kafka as CloudEvents } from "cloudevents";
import { Kafka, logLevel } from "kafkajs";

const [brokers, topic, orderId] = process.argv.slice(2);
const kafka = new Kafka({ brokers: brokers.split(","), logLevel: logLevel.ERROR });
const consumer = kafka.consumer({ groupId: `node-${orderId}` });
setTimeout(() => {
  console.error("no event of this order within 60 seconds");
  process.exit(1);
}, 60_000).unref();

await consumer.connect();
await consumer.subscribe({ topic, fromBeginning: true });
const found = new Promise((resolve, reject) => {
  consumer.on("consumer.crash", ({ payload }) => reject(payload.error));
  consumer.run({
    eachMessage: async ({ message }) => {
      const headers = Object.fromEntries(Object.entries(message.headers).map(([k, v]) => [k, v.toString()]));
      const event = CloudEvents.toEvent({ key: message.key.toString(), value: message.value.toString(), headers });
      if (event.subject === orderId) resolve(event);
    },
  });
});
const event = await found;
event.validate();
const { id, source, type, subject, sequence, time, data } = event;
console.log(JSON.stringify({ id, source, type, subject, sequence, time, data }));
process.exit(0);
