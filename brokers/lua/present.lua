-- Says that one ledger's keeper is here, and who else is.
--
-- KEYS[1]   a hash: the name of each keeper, with until when (milliseconds since 1970, this server's clock), a space, and what it says
-- ARGV[1]   the keeper
-- ARGV[2]   what it says
-- ARGV[3]   for how many milliseconds that counts
-- returns   what the others say
--
-- The key goes when nothing in it counts any more.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local own, counts = ARGV[1], tonumber(ARGV[3])

local found, left = {}, redis.call('PTTL', KEYS[1])
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local space = string.find(fields[i + 1], ' ', 1, true)
  local till = space and tonumber(string.sub(fields[i + 1], 1, space - 1))
  if not till or till <= now then
    redis.call('HDEL', KEYS[1], fields[i])
  elseif fields[i] ~= own then
    found[#found + 1] = string.sub(fields[i + 1], space + 1)
  end
end

-- Not by ..: a number of this size would be written as 1.7e+12.
redis.call('HSET', KEYS[1], own, string.format('%.0f %s', now + counts, ARGV[2]))
redis.call('PEXPIRE', KEYS[1], math.max(left, counts))
return found
