#!lua name=consentry_1
-- The table's only writers. KEYS[1] is a partition's meta hash, the rest are buckets of the same slot.
-- Every refusal tells what the table holds, so that the worker can rewind, rebuild or stop.

local function held(meta)
  local values = redis.call('HMGET', meta, 'epoch', 'next_offset', 'generation', 'tainted')
  return values[1] or '', values[2] or '', values[3] or '', values[4] or ''
end

-- claim(meta; floor, buckets): become the owner. The new epoch is above every earlier one, and at least `floor`
-- (the claimant's milliseconds), so that a table that went back cannot hand out an epoch twice.
local function claim(keys, args)
  local epoch, next_offset, generation, tainted = held(keys[1])
  local new = math.max((tonumber(epoch) or 0) + 1, tonumber(args[1]))
  local text = string.format('%.0f', new)
  redis.call('HSET', keys[1], 'epoch', text)
  redis.call('HSETNX', keys[1], 'buckets', args[2])
  return { text, next_offset, generation, redis.call('HGET', keys[1], 'buckets'), tainted }
end

-- begin(meta; epoch, generation, next_offset, tainted): start a life of the partition's table.
local function begin(keys, args)
  local epoch, next_offset, generation = held(keys[1])
  if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end
  redis.call('HSET', keys[1], 'generation', args[2], 'next_offset', args[3], 'tainted', args[4])
  return { 'OK' }
end

-- store(meta, bucket…; epoch, expected, next, tainted, then per bucket: count, member, record, member, record …)
local function store(keys, args)
  local epoch, next_offset, generation = held(keys[1])
  if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end
  if next_offset ~= args[2] then return { 'OFFSET', epoch, next_offset, generation } end
  local place = 5
  for index = 2, #keys do
    local count = tonumber(args[place])
    local first, last = place + 1, place + count
    while first <= last do
      -- unpack is bounded by Lua's stack
      local stop = math.min(first + 3999, last)
      redis.call('HSET', keys[index], unpack(args, first, stop))
      first = stop + 1
    end
    place = last + 1
  end
  redis.call('HSET', keys[1], 'next_offset', args[3])
  -- a taint ends only when an operator begins a new life of the partition
  if args[4] == '1' then redis.call('HSET', keys[1], 'tainted', '1') end
  return { 'OK' }
end

-- read(meta, bucket…; buckets, then per bucket: count, member …): what meta says, and the records in that order, nil
-- where there is none; all as of one moment. Who expects another layout is told the one that holds, and gets no record:
-- in the wrong buckets everybody would look unknown.
local function read(keys, args)
  local meta = redis.call('HMGET', keys[1], 'epoch', 'next_offset', 'generation', 'frontier', 'tainted', 'buckets')
  local buckets = meta[6]
  if buckets and buckets ~= args[1] then return { 'LAYOUT', buckets } end
  local found, size, place = {}, 0, 2
  for index = 2, #keys do
    local count = tonumber(args[place])
    local first, last = place + 1, place + count
    while first <= last do
      local stop = math.min(first + 3999, last)
      local part = redis.call('HMGET', keys[index], unpack(args, first, stop))
      for item = 1, #part do
        size = size + 1
        found[size] = part[item]
      end
      first = stop + 1
    end
    place = last + 1
  end
  return { 'OK', meta, found }
end

-- beat(meta; epoch, expected, frontier): note the frontier; refuses like store, so that a lost or taken
-- table is noticed on an idle partition too.
local function beat(keys, args)
  local epoch, next_offset, generation = held(keys[1])
  if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end
  if next_offset ~= args[2] then return { 'OFFSET', epoch, next_offset, generation } end
  redis.call('HSET', keys[1], 'frontier', args[3])
  return { 'OK' }
end

-- empty(meta, bucket…; epoch): drop buckets before a rebuild.
local function empty(keys, args)
  local epoch, next_offset, generation = held(keys[1])
  if epoch ~= args[1] then return { 'EPOCH', epoch, next_offset, generation } end
  for index = 2, #keys do redis.call('UNLINK', keys[index]) end
  redis.call('HDEL', keys[1], 'generation', 'next_offset', 'frontier')
  return { 'OK' }
end

redis.register_function('consentry_claim_1', claim)
redis.register_function('consentry_begin_1', begin)
redis.register_function('consentry_store_1', store)
redis.register_function('consentry_beat_1', beat)
redis.register_function('consentry_empty_1', empty)
redis.register_function { function_name = 'consentry_read_1', callback = read, flags = { 'no-writes' } }
