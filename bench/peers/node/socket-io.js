// Socket.IO 4 with its Redis adapter; publications come as its emitter sends them.
// Usage: node socket-io.js PORT REDIS_PORT
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import Redis from "ioredis";
import { Server } from "socket.io";

const [port, redisPort] = process.argv.slice(2).map(Number);
const publish = new Redis(redisPort, "127.0.0.1");
const http = createServer();
new Server(http, {
  adapter: createAdapter(publish, publish.duplicate()),
  perMessageDeflate: false,
  serveClient: false,
  transports: ["websocket"],
});
http.listen({ port, host: "127.0.0.1", backlog: 4096 });
