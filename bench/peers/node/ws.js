// ws and ioredis, as their READMEs show a broadcast. Usage: node ws.js PORT REDIS_PORT
import Redis from "ioredis";
import { WebSocket, WebSocketServer } from "ws";

const [port, redisPort] = process.argv.slice(2).map(Number);
const server = new WebSocketServer({ host: "127.0.0.1", port, perMessageDeflate: false, backlog: 4096 });
const subscription = new Redis(redisPort, "127.0.0.1");

await subscription.subscribe("bench");
subscription.on("message", (_channel, message) => {
  for (const client of server.clients) {
    if (client.readyState === WebSocket.OPEN) client.send(message);
  }
});
