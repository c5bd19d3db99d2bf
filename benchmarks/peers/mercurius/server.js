// A peer of the gateway on Node: mercurius with JIT, loaders and undici; the published schema over the same REST services.
// PRODUCTS=... ORDERS=... node server.js PORT
import { readFileSync } from 'node:fs'
import Fastify from 'fastify'
import mercurius from 'mercurius'
import { Pool } from 'undici'

const products = new Pool(process.env.PRODUCTS, { connections: 64 })
const orders = new Pool(process.env.ORDERS, { connections: 64 })
const get = async (pool, path) => (await pool.request({ path, method: 'GET' })).body.json()

const productOf = (p) => ({ ...p, imageUrl: p.image_url, createdAt: p.created_at, updatedAt: p.updated_at })
const itemOf = (i) => ({ ...i, productId: i.product_id, unitPrice: i.unit_price })
const orderOf = (o) => ({ ...o, createdAt: o.created_at, items: o.items.map(itemOf) })

const resolvers = {
  Query: {
    products: async (_, { limit = 20, offset = 0 }) => {
      const page = await get(products, `/api/product?limit=${limit}&offset=${offset}`)
      return { ...page, items: page.items.map(productOf) }
    },
    orders: async (_, { user, limit = 100, offset = 0 }) => {
      const page = await get(orders, `/api/order?user=${user}&limit=${limit}&offset=${offset}`)
      return { ...page, items: page.items.map(orderOf) }
    }
  }
}

const loaders = {
  OrderItem: {
    product: async (queries) => {
      const ids = [...new Set(queries.map(({ obj }) => obj.productId))]
      const found = new Map()
      for (let i = 0; i < ids.length; i += 100) {
        const page = await get(products, `/api/product?ids=${ids.slice(i, i + 100).join(',')}`)
        for (const p of page.items) found.set(p.id, productOf(p))
      }
      return queries.map(({ obj }) => found.get(obj.productId) ?? null)
    }
  }
}

const app = Fastify()
const schema = readFileSync(new URL('../../../graphql/schema.graphql', import.meta.url), 'utf8')
app.register(mercurius, { schema, resolvers, loaders, jit: 1 })
await app.listen({ host: '127.0.0.1', port: Number(process.argv[2]) })
console.log('ready')
