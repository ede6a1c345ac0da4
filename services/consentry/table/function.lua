#!lua name=consentry_2
-- The only writers of the consent table. KEYS[1] is a partition's meta hash; the other keys are buckets of the
-- same slot. Every refusal returns what the table holds, so that the worker can rewind, rebuild or stop.
-- The number in the names goes up when a name or its arguments change, so that workers of two releases can work
-- beside each other.

local function state_of(meta)
  local values = redis.call('HMGET', meta, 'epoch', 'next_offset', 'generation', 'tainted')
  return values[1] or '', values[2] or '', values[3] or '', values[4] or ''
end

-- claim(meta; min_epoch, buckets): become the owner. The new epoch is above every earlier one, and at least
-- min_epoch (the claimant's milliseconds), so that a table that went back cannot hand out an epoch twice.
local function claim(keys, args)
  local epoch, next_offset, generation, tainted = state_of(keys[1])
  local new = math.max((tonumber(epoch) or 0) + 1, tonumber(args[1]))
  local text = string.format('%.0f', new)
  redis.call('HSET', keys[1], 'epoch', text)
  redis.call('HSETNX', keys[1], 'buckets', args[2])
  return { text, next_offset, generation, redis.call('HGET', keys[1], 'buckets'), tainted }
end

-- start_generation(meta; epoch, generation, next_offset, tainted): start a life of the partition's table.
local function start_generation(keys, args)
  local epoch, next_offset, generation = state_of(keys[1])
  if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end
  redis.call('HSET', keys[1], 'generation', args[2], 'next_offset', args[3], 'tainted', args[4])
  return { 'OK' }
end

-- store(meta, bucket…; epoch, expected, next, tainted, then per bucket: count, member, record, member, record …)
local function store(keys, args)
  local epoch, next_offset, generation = state_of(keys[1])
  if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end
  if next_offset ~= args[2] then return { 'OFFSET', epoch, next_offset, generation } end
  local position = 5
  for bucket = 2, #keys do
    local count = tonumber(args[position])
    local first, last = position + 1, position + count
    while first <= last do
      -- Lua's stack bounds how many arguments unpack may return.
      local stop = math.min(first + 3999, last)
      redis.call('HSET', keys[bucket], unpack(args, first, stop))
      first = stop + 1
    end
    position = last + 1
  end
  redis.call('HSET', keys[1], 'next_offset', args[3])
  -- A taint ends only when an operator starts a new life of the partition.
  if args[4] == '1' then redis.call('HSET', keys[1], 'tainted', '1') end
  return { 'OK' }
end

-- read(meta, bucket…; buckets, then per bucket: count, member …): the meta and the records in that order, nil for a
-- member without one, all as of one moment. A caller that expects another number of buckets gets the true number and no
-- record: in the wrong buckets every member would look unknown.
local function read(keys, args)
  local meta = redis.call('HMGET', keys[1], 'epoch', 'next_offset', 'generation', 'frontier', 'tainted', 'buckets')
  local buckets = meta[6]
  if buckets and buckets ~= args[1] then return { 'LAYOUT', buckets } end
  local records, size, position = {}, 0, 2
  for bucket = 2, #keys do
    local count = tonumber(args[position])
    local first, last = position + 1, position + count
    while first <= last do
      local stop = math.min(first + 3999, last)
      local part = redis.call('HMGET', keys[bucket], unpack(args, first, stop))
      for item = 1, #part do
        size = size + 1
        records[size] = part[item]
      end
      first = stop + 1
    end
    position = last + 1
  end
  return { 'OK', meta, records }
end

-- heartbeat(meta; epoch, expected, frontier): note the frontier. Refuses as store does, so that a lost or taken
-- table is noticed on an idle partition too.
local function heartbeat(keys, args)
  local epoch, next_offset, generation = state_of(keys[1])
  if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end
  if next_offset ~= args[2] then return { 'OFFSET', epoch, next_offset, generation } end
  redis.call('HSET', keys[1], 'frontier', args[3])
  return { 'OK' }
end

-- clear(meta, bucket…; epoch): drop the buckets before a rebuild.
local function clear(keys, args)
  local epoch, next_offset, generation = state_of(keys[1])
  if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end
  for bucket = 2, #keys do redis.call('UNLINK', keys[bucket]) end
  redis.call('HDEL', keys[1], 'generation', 'next_offset', 'frontier')
  return { 'OK' }
end

redis.register_function('consentry_claim_2', claim)
redis.register_function('consentry_start_generation_2', start_generation)
redis.register_function('consentry_store_2', store)
redis.register_function('consentry_heartbeat_2', heartbeat)
redis.register_function('consentry_clear_2', clear)
redis.register_function { function_name = 'consentry_read_2', callback = read, flags = { 'no-writes' } }
