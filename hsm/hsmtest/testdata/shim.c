/*
 * A PKCS#11 module for tests: it passes every call on to a real module and misbehaves
 * on demand. The real module is named by KEYMILL_SHIM_MODULE; what to do is read from,
 * and what happened is written to, a shared memory file named by KEYMILL_SHIM_CONTROL.
 * The layout of that file is repeated in shim.go:
 *
 *   word 0  flags          word 1  microseconds each call takes longer
 *   word 2  sessions allowed, 0 for any number
 *   word 3  set to 1: reset the token at the next call (sessions and login are gone)
 *   word 4  set to 1: log the user out at the next call
 *   word 5  how often two threads were in one session
 *   word 6  microseconds that calls take longer which a network HSM's library sends to
 *           the device: encryption, decryption, signing, random bytes, key generation,
 *           search, login; not the Init functions, nor questions for a length
 *   word 7  how often that was waited for   word 8  microseconds it took in all
 *   word 16 + 8*f, for the function with number f in CK_FUNCTION_LIST:
 *     +0 calls so far   +1 calls to let pass   +2 calls to break then
 *     +3 CK_RV to return   +4 do the call first   +5 hang until cleared   +6 hanging now
 *     +7 crash instead: 1 by a wild pointer, 2 by abort()
 *
 * Session handles are the shim's own, always the lowest free number, so that they are
 * reused after a reset as by the least careful of tokens.
 *
 * Declarations are the few that are needed, for the usual unpacked Unix layout.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t rv_t;
typedef unsigned char byte_t;

struct attribute { ulong_t type; void *value; ulong_t len; };
struct mechanism { ulong_t mechanism; void *param; ulong_t len; };
struct mechanism_info { ulong_t min, max, flags; };
struct gcm_params { byte_t *iv; ulong_t iv_len, iv_bits; byte_t *aad; ulong_t aad_len, tag_bits; };
struct token_info { byte_t label[32], maker[32], model[16], serial[16]; ulong_t flags; };

enum { /* positions in CK_FUNCTION_LIST */
	F_INITIALIZE = 0, F_GET_FUNCTION_LIST = 3, F_GET_SLOT_LIST = 4, F_GET_TOKEN_INFO = 6,
	F_GET_MECHANISM_LIST = 7, F_GET_MECHANISM_INFO = 8, F_OPEN_SESSION = 12, F_CLOSE_SESSION = 13,
	F_CLOSE_ALL = 14, F_GET_SESSION_INFO = 15, F_LOGIN = 18, F_LOGOUT = 19, F_CREATE_OBJECT = 20,
	F_DESTROY_OBJECT = 22, F_GET_ATTRIBUTE = 24, F_FIND_INIT = 26, F_FIND = 27, F_FIND_FINAL = 28,
	F_ENCRYPT_INIT = 29, F_ENCRYPT = 30, F_DECRYPT_INIT = 33, F_DECRYPT = 34, F_SIGN_INIT = 42, F_SIGN = 43,
	F_GENERATE_KEY = 58, F_GENERATE_KEY_PAIR = 59, F_GENERATE_RANDOM = 64, F_COUNT = 68
};

enum { /* flags in word 0 */
	NO_GCM = 1 << 0, NO_CBC = 1 << 1, NO_CBC_PAD = 1 << 2, OWN_IV = 1 << 3, ZERO_IV_ONLY = 1 << 4,
	IGNORE_IV = 1 << 5, NO_AES = 1 << 6, NO_CREATE = 1 << 7, HIDE_VALUE = 1 << 8, REMOVED = 1 << 9,
	PIN_LOCKED = 1 << 10, FINAL_TRY = 1 << 11, NO_SESSION_KEYS = 1 << 12, SAY_EXTRACTABLE = 1 << 13,
	NO_TAG_CHECK = 1 << 14, NO_RNG = 1 << 15, STRICT_TEMPLATE = 1 << 16, NO_RSA = 1 << 17,
	IGNORE_AAD = 1 << 18, OWN_HANDLES = 1 << 19
};

enum {
	OK = 0, GENERAL_ERROR = 5, ATTRIBUTE_SENSITIVE = 0x11, ATTRIBUTE_TYPE_INVALID = 0x12,
	DEVICE_REMOVED = 0x32, MECHANISM_INVALID = 0x70, MECHANISM_PARAM_INVALID = 0x71,
	PIN_IS_LOCKED = 0xA4, SESSION_COUNT = 0xB1, SESSION_HANDLE_INVALID = 0xB3,
	TEMPLATE_INCONSISTENT = 0xD1, TOKEN_NOT_PRESENT = 0xE0, ACTION_PROHIBITED = 0x1B
};

enum {
	CKM_RSA_GEN = 0x0, CKM_OAEP = 0x9, CKM_AES_KEY_GEN = 0x1080, CKM_CBC = 0x1082,
	CKM_CBC_PAD = 0x1085, CKM_GCM = 0x1087,
	CKA_TOKEN = 0x1, CKA_VALUE = 0x11, CKA_SIGN = 0x108, CKA_EXTRACTABLE = 0x162
};

struct function_list { byte_t version[2]; void *fn[F_COUNT]; };

#define MAX_SESSIONS 256

static struct function_list ours, *real;
static _Atomic uint32_t *ctl;
static struct { ulong_t real; int used; _Atomic int busy; } sessions[MAX_SESSIONS];
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER; /* guards sessions[].real and .used */
/* Held for reading during a call in a session, for writing during a reset: SoftHSM2 does
 * not survive losing a session in which a thread is at work. */
static pthread_rwlock_t resetting = PTHREAD_RWLOCK_INITIALIZER;

static uint32_t flag(uint32_t f) { return ctl[0] & f; }

/* REAL(f, types)(arguments) calls the real module. */
#define REAL(f, ...) ((rv_t (*)(__VA_ARGS__))real->fn[f])

struct call { int f, slot, hit; rv_t rv; };

/* travel waits as long as a call takes to the device and back, and notes how long it was
 * in truth: an operating system wakes nobody on the dot, least of all when it is busy. */
static void travel(void)
{
	static __thread int sharp;
	struct timespec from, to;
	if (!ctl[6])
		return;
	if (!sharp)
		sharp = prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0) == 0; /* nanoseconds; 50 microseconds else */
	clock_gettime(CLOCK_MONOTONIC, &from);
	usleep(ctl[6]);
	clock_gettime(CLOCK_MONOTONIC, &to);
	ctl[7]++;
	ctl[8] += (uint32_t)((to.tv_sec - from.tv_sec) * 1000000 + (to.tv_nsec - from.tv_nsec) / 1000);
}

/* enter counts a call of f, waits and decides whether it breaks. */
static void enter(struct call *c, int f)
{
	_Atomic uint32_t *w = ctl + 16 + 8 * f;
	c->f = f;
	c->slot = -1;
	c->hit = 0;
	w[0]++;
	if (ctl[1])
		usleep(ctl[1]);
	uint32_t n = w[1];
	while (n > 0 && !atomic_compare_exchange_weak(&w[1], &n, n - 1))
		;
	if (n > 0)
		return;
	n = w[2];
	while (n > 0 && !atomic_compare_exchange_weak(&w[2], &n, n - 1))
		;
	if (n == 0)
		return;
	if (w[7] == 1)
		*(volatile int *)16 = 1;
	if (w[7] == 2)
		abort();
	c->hit = 1;
	c->rv = w[3];
	if (w[5]) {
		w[6]++;
		while (w[5])
			usleep(500);
		w[6]--;
	}
}

/* CALL does the real call unless it is broken before it takes effect. */
#define CALL(c, expr) \
	({ rv_t rv_ = OK; \
	   if (!(c).hit || (c).rv == OK || ctl[16 + 8 * (c).f + 4]) rv_ = (expr); \
	   if ((c).hit && (c).rv != OK) rv_ = (c).rv; \
	   rv_; })

/* claim marks a session as entered and returns the real handle. */
static rv_t claim(struct call *c, ulong_t h, ulong_t *out)
{
	uint32_t one = 1;
	if (flag(REMOVED))
		return DEVICE_REMOVED;
	if (atomic_compare_exchange_strong(&ctl[3], &one, 0)) {
		ulong_t slots[64], n = 64;
		pthread_rwlock_wrlock(&resetting);
		if (REAL(F_GET_SLOT_LIST, byte_t, ulong_t *, ulong_t *)(1, slots, &n) == OK)
			for (ulong_t i = 0; i < n; i++)
				REAL(F_CLOSE_ALL, ulong_t)(slots[i]);
		pthread_mutex_lock(&mu);
		for (int i = 0; i < MAX_SESSIONS; i++)
			sessions[i].used = 0;
		pthread_mutex_unlock(&mu);
		pthread_rwlock_unlock(&resetting);
	}
	pthread_rwlock_rdlock(&resetting);
	pthread_mutex_lock(&mu);
	int valid = h >= 1 && h <= MAX_SESSIONS && sessions[h - 1].used;
	if (valid)
		*out = sessions[h - 1].real;
	pthread_mutex_unlock(&mu);
	if (!valid) {
		pthread_rwlock_unlock(&resetting);
		return SESSION_HANDLE_INVALID;
	}
	c->slot = (int)h - 1;
	if (atomic_exchange(&sessions[c->slot].busy, 1))
		ctl[5]++;
	one = 1;
	if (atomic_compare_exchange_strong(&ctl[4], &one, 0))
		REAL(F_LOGOUT, ulong_t)(*out);
	return OK;
}

/* Handles of objects, as seen from a session: with OWN_HANDLES they are its own. */
static ulong_t to_session(struct call *c, ulong_t o)
{
	return flag(OWN_HANDLES) ? o | (ulong_t)(c->slot + 1) << 32 : o;
}

static ulong_t from_session(struct call *c, ulong_t o)
{
	if (!flag(OWN_HANDLES))
		return o;
	return o >> 32 == (ulong_t)(c->slot + 1) ? o & 0xffffffff : 0;
}

static void leave(struct call *c)
{
	if (c->slot >= 0) {
		sessions[c->slot].busy = 0;
		pthread_rwlock_unlock(&resetting);
	}
}

/* IN_SESSION is the body of a function whose first argument is a session. */
#define IN_SESSION(f, h, expr) \
	do { \
		struct call c; ulong_t s = 0; \
		enter(&c, f); \
		rv_t rv = claim(&c, h, &s); \
		if (rv == OK) rv = CALL(c, expr); \
		leave(&c); \
		return rv; \
	} while (0)

static rv_t initialize(void *args)
{
	struct call c;
	enter(&c, F_INITIALIZE);
	return CALL(c, REAL(F_INITIALIZE, void *)(args));
}

static rv_t get_slot_list(byte_t present, ulong_t *list, ulong_t *n)
{
	struct call c;
	enter(&c, F_GET_SLOT_LIST);
	if (flag(REMOVED) && present) {
		*n = 0;
		return OK;
	}
	return CALL(c, REAL(F_GET_SLOT_LIST, byte_t, ulong_t *, ulong_t *)(present, list, n));
}

static rv_t get_token_info(ulong_t slot, struct token_info *info)
{
	struct call c;
	enter(&c, F_GET_TOKEN_INFO);
	if (flag(REMOVED))
		return TOKEN_NOT_PRESENT;
	rv_t rv = CALL(c, REAL(F_GET_TOKEN_INFO, ulong_t, struct token_info *)(slot, info));
	if (rv == OK && flag(PIN_LOCKED))
		info->flags |= 0x40000;
	if (rv == OK && flag(FINAL_TRY))
		info->flags |= 0x20000;
	if (rv == OK && flag(NO_RNG))
		info->flags &= ~1ul;
	return rv;
}

static int missing(ulong_t m)
{
	return (m == CKM_GCM && flag(NO_GCM)) || (m == CKM_CBC && flag(NO_CBC)) || (m == CKM_CBC_PAD && flag(NO_CBC_PAD)) ||
	       (m == CKM_AES_KEY_GEN && flag(NO_AES)) || (m == CKM_RSA_GEN && flag(NO_RSA));
}

static rv_t get_mechanism_list(ulong_t slot, ulong_t *list, ulong_t *n)
{
	struct call c;
	enter(&c, F_GET_MECHANISM_LIST);
	rv_t rv = CALL(c, REAL(F_GET_MECHANISM_LIST, ulong_t, ulong_t *, ulong_t *)(slot, list, n));
	if (rv != OK || !list)
		return rv;
	ulong_t kept = 0;
	for (ulong_t i = 0; i < *n; i++)
		if (!missing(list[i]))
			list[kept++] = list[i];
	*n = kept;
	return OK;
}

static rv_t get_mechanism_info(ulong_t slot, ulong_t m, struct mechanism_info *info)
{
	struct call c;
	enter(&c, F_GET_MECHANISM_INFO);
	if (missing(m))
		return MECHANISM_INVALID;
	return CALL(c, REAL(F_GET_MECHANISM_INFO, ulong_t, ulong_t, struct mechanism_info *)(slot, m, info));
}

static rv_t open_session(ulong_t slot, ulong_t flags, void *app, void *notify, ulong_t *h)
{
	struct call c;
	ulong_t s;
	enter(&c, F_OPEN_SESSION);
	if (flag(REMOVED))
		return TOKEN_NOT_PRESENT;
	int free_slot = -1, open = 0;
	pthread_mutex_lock(&mu);
	for (int i = MAX_SESSIONS - 1; i >= 0; i--) {
		if (sessions[i].used)
			open++;
		else
			free_slot = i;
	}
	if (free_slot < 0 || (ctl[2] && (uint32_t)open >= ctl[2])) {
		pthread_mutex_unlock(&mu);
		return SESSION_COUNT;
	}
	sessions[free_slot].used = 1;
	pthread_mutex_unlock(&mu);
	rv_t rv = CALL(c, REAL(F_OPEN_SESSION, ulong_t, ulong_t, void *, void *, ulong_t *)(slot, flags, app, notify, &s));
	pthread_mutex_lock(&mu);
	if (rv == OK) {
		sessions[free_slot].real = s;
		*h = (ulong_t)free_slot + 1;
	} else {
		sessions[free_slot].used = 0;
	}
	pthread_mutex_unlock(&mu);
	return rv;
}

static rv_t close_session(ulong_t h)
{
	struct call c;
	ulong_t s = 0;
	enter(&c, F_CLOSE_SESSION);
	rv_t rv = claim(&c, h, &s);
	if (rv == OK) {
		rv = CALL(c, REAL(F_CLOSE_SESSION, ulong_t)(s));
		pthread_mutex_lock(&mu);
		if (rv == OK)
			sessions[c.slot].used = 0;
		pthread_mutex_unlock(&mu);
	}
	leave(&c);
	return rv;
}

static rv_t get_session_info(ulong_t h, void *info)
{
	IN_SESSION(F_GET_SESSION_INFO, h, REAL(F_GET_SESSION_INFO, ulong_t, void *)(s, info));
}

static rv_t login(ulong_t h, ulong_t user, byte_t *pin, ulong_t n)
{
	travel();
	IN_SESSION(F_LOGIN, h, flag(PIN_LOCKED) ? PIN_IS_LOCKED : REAL(F_LOGIN, ulong_t, ulong_t, byte_t *, ulong_t)(s, user, pin, n));
}

static rv_t create_object(ulong_t h, struct attribute *t, ulong_t n, ulong_t *o)
{
	IN_SESSION(F_CREATE_OBJECT, h, flag(NO_CREATE) ? ACTION_PROHIBITED :
		REAL(F_CREATE_OBJECT, ulong_t, struct attribute *, ulong_t, ulong_t *)(s, t, n, o));
}

static rv_t destroy_object(ulong_t h, ulong_t o)
{
	IN_SESSION(F_DESTROY_OBJECT, h, REAL(F_DESTROY_OBJECT, ulong_t, ulong_t)(s, from_session(&c, o)));
}

static rv_t attributes(ulong_t s, ulong_t o, struct attribute *t, ulong_t n)
{
	for (ulong_t i = 0; i < n; i++)
		if (t[i].type == CKA_VALUE && flag(HIDE_VALUE)) {
			t[i].len = (ulong_t)-1;
			return ATTRIBUTE_SENSITIVE;
		}
	rv_t rv = REAL(F_GET_ATTRIBUTE, ulong_t, ulong_t, struct attribute *, ulong_t)(s, o, t, n);
	for (ulong_t i = 0; i < n; i++)
		if (rv == OK && t[i].type == CKA_EXTRACTABLE && t[i].value && flag(SAY_EXTRACTABLE))
			*(byte_t *)t[i].value = 1;
	return rv;
}

static rv_t get_attribute(ulong_t h, ulong_t o, struct attribute *t, ulong_t n)
{
	IN_SESSION(F_GET_ATTRIBUTE, h, attributes(s, from_session(&c, o), t, n));
}

static rv_t find_init(ulong_t h, struct attribute *t, ulong_t n)
{
	IN_SESSION(F_FIND_INIT, h, REAL(F_FIND_INIT, ulong_t, struct attribute *, ulong_t)(s, t, n));
}

static rv_t find(ulong_t h, ulong_t *list, ulong_t max, ulong_t *n)
{
	travel();
	IN_SESSION(F_FIND, h, ({
		rv_t r_ = REAL(F_FIND, ulong_t, ulong_t *, ulong_t, ulong_t *)(s, list, max, n);
		for (ulong_t i = 0; r_ == OK && i < *n; i++)
			list[i] = to_session(&c, list[i]);
		r_;
	}));
}

static rv_t find_final(ulong_t h)
{
	IN_SESSION(F_FIND_FINAL, h, REAL(F_FIND_FINAL, ulong_t)(s));
}

static rv_t start_encrypt(ulong_t s, struct mechanism *m, ulong_t key)
{
	if (missing(m->mechanism))
		return MECHANISM_INVALID;
	if (m->mechanism == CKM_GCM) {
		struct gcm_params *p = m->param, copy = *p;
		struct mechanism own = { CKM_GCM, &copy, sizeof copy };
		if (flag(IGNORE_AAD))
			copy.aad_len = 0;
		static const byte_t zeroes[64];
		if (flag(ZERO_IV_ONLY) && memcmp(p->iv, zeroes, p->iv_len) != 0)
			return MECHANISM_PARAM_INVALID;
		if (flag(OWN_IV | ZERO_IV_ONLY)) {
			rv_t rv = REAL(F_GENERATE_RANDOM, ulong_t, byte_t *, ulong_t)(s, p->iv, p->iv_len);
			if (rv != OK)
				return rv;
		}
		if (flag(IGNORE_IV)) {
			copy.iv = (byte_t *)zeroes;
			return REAL(F_ENCRYPT_INIT, ulong_t, struct mechanism *, ulong_t)(s, &own, key);
		}
		if (flag(IGNORE_AAD))
			return REAL(F_ENCRYPT_INIT, ulong_t, struct mechanism *, ulong_t)(s, &own, key);
	}
	return REAL(F_ENCRYPT_INIT, ulong_t, struct mechanism *, ulong_t)(s, m, key);
}

static rv_t encrypt_init(ulong_t h, struct mechanism *m, ulong_t key)
{
	IN_SESSION(F_ENCRYPT_INIT, h, start_encrypt(s, m, from_session(&c, key)));
}

/* end_operation ends an encryption or decryption that is to fail, as a failure does. */
static void end_operation(struct call *c, ulong_t s, byte_t *in, ulong_t n)
{
	byte_t scratch[4096];
	ulong_t room = sizeof scratch;
	REAL(c->f, ulong_t, byte_t *, ulong_t, byte_t *, ulong_t *)(s, in, n, scratch, &room);
}

static rv_t finish(int f, ulong_t s, byte_t *in, ulong_t n, byte_t *out, ulong_t *outn)
{
	ulong_t room = *outn;
	if (out)
		travel();
	rv_t rv = REAL(f, ulong_t, byte_t *, ulong_t, byte_t *, ulong_t *)(s, in, n, out, outn);
	if (f == F_DECRYPT && rv != OK && out && flag(NO_TAG_CHECK)) {
		*outn = room < 32 ? room : 32;
		memset(out, 0x5A, *outn);
		return OK;
	}
	return rv;
}

/* one_part is an encryption, decryption or signature in one part. */
static rv_t one_part(int f, ulong_t h, byte_t *in, ulong_t n, byte_t *out, ulong_t *outn)
{
	struct call c;
	ulong_t s = 0;
	enter(&c, f);
	rv_t rv = claim(&c, h, &s);
	if (rv == OK && c.hit && c.rv != OK) {
		end_operation(&c, s, in, n);
		rv = c.rv;
	} else if (rv == OK) {
		rv = finish(f, s, in, n, out, outn);
	}
	leave(&c);
	return rv;
}

static rv_t encrypt(ulong_t h, byte_t *in, ulong_t n, byte_t *out, ulong_t *outn)
{
	return one_part(F_ENCRYPT, h, in, n, out, outn);
}

static rv_t start_decrypt(ulong_t s, struct mechanism *m, ulong_t key)
{
	if (missing(m->mechanism))
		return MECHANISM_INVALID;
	if (m->mechanism == CKM_GCM && flag(IGNORE_IV | IGNORE_AAD)) {
		struct gcm_params copy = *(struct gcm_params *)m->param;
		struct mechanism own = { CKM_GCM, &copy, sizeof copy };
		static const byte_t zeroes[64];
		if (flag(IGNORE_IV))
			copy.iv = (byte_t *)zeroes;
		if (flag(IGNORE_AAD))
			copy.aad_len = 0;
		return REAL(F_DECRYPT_INIT, ulong_t, struct mechanism *, ulong_t)(s, &own, key);
	}
	return REAL(F_DECRYPT_INIT, ulong_t, struct mechanism *, ulong_t)(s, m, key);
}

static rv_t decrypt_init(ulong_t h, struct mechanism *m, ulong_t key)
{
	IN_SESSION(F_DECRYPT_INIT, h, start_decrypt(s, m, from_session(&c, key)));
}

static rv_t decrypt(ulong_t h, byte_t *in, ulong_t n, byte_t *out, ulong_t *outn)
{
	return one_part(F_DECRYPT, h, in, n, out, outn);
}

static rv_t sign_init(ulong_t h, struct mechanism *m, ulong_t key)
{
	IN_SESSION(F_SIGN_INIT, h, REAL(F_SIGN_INIT, ulong_t, struct mechanism *, ulong_t)(s, m, from_session(&c, key)));
}

static rv_t sign(ulong_t h, byte_t *in, ulong_t n, byte_t *out, ulong_t *outn)
{
	return one_part(F_SIGN, h, in, n, out, outn);
}

static rv_t make_key(ulong_t s, struct mechanism *m, struct attribute *t, ulong_t n, ulong_t *o)
{
	if (missing(m->mechanism))
		return MECHANISM_INVALID;
	for (ulong_t i = 0; i < n; i++) {
		if (t[i].type == CKA_TOKEN && !*(byte_t *)t[i].value && flag(NO_SESSION_KEYS))
			return TEMPLATE_INCONSISTENT;
		if (t[i].type == CKA_SIGN && flag(STRICT_TEMPLATE))
			return ATTRIBUTE_TYPE_INVALID;
	}
	return REAL(F_GENERATE_KEY, ulong_t, struct mechanism *, struct attribute *, ulong_t, ulong_t *)(s, m, t, n, o);
}

static rv_t generate_key(ulong_t h, struct mechanism *m, struct attribute *t, ulong_t n, ulong_t *o)
{
	travel();
	IN_SESSION(F_GENERATE_KEY, h, ({ rv_t r_ = make_key(s, m, t, n, o); if (r_ == OK) *o = to_session(&c, *o); r_; }));
}

static rv_t generate_key_pair(ulong_t h, struct mechanism *m, struct attribute *a, ulong_t an, struct attribute *b, ulong_t bn, ulong_t *pub, ulong_t *priv)
{
	travel();
	IN_SESSION(F_GENERATE_KEY_PAIR, h, ({
		rv_t r_ = REAL(F_GENERATE_KEY_PAIR, ulong_t, struct mechanism *, struct attribute *, ulong_t, struct attribute *, ulong_t, ulong_t *, ulong_t *)
			(s, m, a, an, b, bn, pub, priv);
		if (r_ == OK) {
			*pub = to_session(&c, *pub);
			*priv = to_session(&c, *priv);
		}
		r_;
	}));
}

static rv_t generate_random(ulong_t h, byte_t *out, ulong_t n)
{
	travel();
	IN_SESSION(F_GENERATE_RANDOM, h, REAL(F_GENERATE_RANDOM, ulong_t, byte_t *, ulong_t)(s, out, n));
}

static rv_t get_function_list(struct function_list **out)
{
	*out = &ours;
	return OK;
}

rv_t C_GetFunctionList(struct function_list **out)
{
	const char *module = getenv("KEYMILL_SHIM_MODULE"), *control = getenv("KEYMILL_SHIM_CONTROL");
	if (!ctl) {
		void *lib = module ? dlopen(module, RTLD_NOW) : NULL;
		rv_t (*get)(struct function_list **) = lib ? (rv_t (*)(struct function_list **))dlsym(lib, "C_GetFunctionList") : NULL;
		int fd = control ? open(control, O_RDWR) : -1;
		if (!get || fd < 0 || get(&real) != OK)
			return GENERAL_ERROR;
		ctl = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
		ours = *real;
		ours.fn[F_INITIALIZE] = initialize;
		ours.fn[F_GET_FUNCTION_LIST] = get_function_list;
		ours.fn[F_GET_SLOT_LIST] = get_slot_list;
		ours.fn[F_GET_TOKEN_INFO] = get_token_info;
		ours.fn[F_GET_MECHANISM_LIST] = get_mechanism_list;
		ours.fn[F_GET_MECHANISM_INFO] = get_mechanism_info;
		ours.fn[F_OPEN_SESSION] = open_session;
		ours.fn[F_CLOSE_SESSION] = close_session;
		ours.fn[F_GET_SESSION_INFO] = get_session_info;
		ours.fn[F_LOGIN] = login;
		ours.fn[F_CREATE_OBJECT] = create_object;
		ours.fn[F_DESTROY_OBJECT] = destroy_object;
		ours.fn[F_GET_ATTRIBUTE] = get_attribute;
		ours.fn[F_FIND_INIT] = find_init;
		ours.fn[F_FIND] = find;
		ours.fn[F_FIND_FINAL] = find_final;
		ours.fn[F_ENCRYPT_INIT] = encrypt_init;
		ours.fn[F_ENCRYPT] = encrypt;
		ours.fn[F_DECRYPT_INIT] = decrypt_init;
		ours.fn[F_DECRYPT] = decrypt;
		ours.fn[F_SIGN_INIT] = sign_init;
		ours.fn[F_SIGN] = sign;
		ours.fn[F_GENERATE_KEY] = generate_key;
		ours.fn[F_GENERATE_KEY_PAIR] = generate_key_pair;
		ours.fn[F_GENERATE_RANDOM] = generate_random;
	}
	return get_function_list(out);
}
