/* SPDX-License-Identifier: MIT */
/*
 * copy_walk.c - listing directories, and sharing the work among workers
 *
 * Problem      many small files want several workers, but two workers that create files in
 *              the same directory mostly wait for its lock. And a tree may be wide or deep,
 *              while memory is to be bounded.
 * Idea         a worker takes a directory and copies the files in it itself, name by name as
 *              they are listed. Directories it meets go on a common stack, from which idle
 *              workers take the latest. Only when workers stand idle are a directory's files
 *              given away, in batches.
 * Limits       at TASKS_MAX waiting directories, a worker that meets another puts its own
 *              listing off and goes down into it; the position is one number, so what is put
 *              off costs a struct copy_dir a level and no descriptor. Batches are given
 *              away one per idle worker, so at most as many exist as workers.
 * Order        files of a piece of listing are copied by inode number, which on most file
 *              systems is the order on the disk.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "copy_internal.h"

#define TASKS_MAX 1024u
#define BATCH_MIN ((size_t)8) /* files worth giving away */
/* No entry of a listing is shorter than 24 bytes. */
#define ENTRIES_MAX     (COPY_LIST_SIZE / 24)
#define SOURCES_AT_ONCE 64u

/* ---- giving work away ------------------------------------------------------------------- */

void copy_push_dir(struct copy *copy, struct copy_dir *dir)
{
    wi_mutex_lock(&copy->mu);
    wi_list_push_front(&copy->tasks_dirs, &dir->task_link);
    copy->tasks_dirs_count++;
    wi_cond_signal(&copy->work);
    wi_mutex_unlock(&copy->mu);
}

static bool too_many_dirs(struct copy *copy)
{
    bool too_many;

    wi_mutex_lock(&copy->mu);
    too_many = copy->tasks_dirs_count >= TASKS_MAX;
    wi_mutex_unlock(&copy->mu);
    return too_many;
}

/* A batch with `count` entries and their names copied. NULL without memory. */
static struct copy_batch *make_batch(struct copy_dir *dir, const struct copy_entry *entries,
                                     uint32_t count)
{
    size_t head = sizeof(struct copy_batch) + count * sizeof(struct copy_entry);
    size_t names = 0;
    struct copy_batch *batch;
    char *at;

    for (uint32_t i = 0; i < count; i++)
        names += strlen(entries[i].name) + 1;
    batch = malloc(head + names);
    if (!batch)
        return NULL;
    batch->dir = dir;
    batch->count = count;
    wi_list_init(&batch->task_link);
    at = (char *)batch + head;
    for (uint32_t i = 0; i < count; i++) {
        size_t len = strlen(entries[i].name) + 1;
        bool same = entries[i].copy_name == entries[i].name;

        memcpy(at, entries[i].name, len);
        batch->entries[i] = entries[i];
        batch->entries[i].name = at;
        if (same)
            batch->entries[i].copy_name = at;
        /* else it is one of copy->names, which outlive all */
        at += len;
    }
    copy_dir_ref(dir);
    return batch;
}

/* Give idle workers their share of the entries. Returns how many of them are left to us. */
static uint32_t give_away(struct copy_worker *worker, struct copy_dir *dir,
                          const struct copy_entry *entries, uint32_t count)
{
    struct copy *copy = worker->copy;

    while (count >= 2 * BATCH_MIN) {
        struct copy_batch *batch;
        uint32_t takers;
        uint32_t share;

        wi_mutex_lock(&copy->mu);
        takers = copy_get(&copy->idle);
        takers -=
            (uint32_t)wi_min_u64(takers, copy->tasks_batches_count + copy->tasks_dirs_count);
        wi_mutex_unlock(&copy->mu);
        if (takers == 0)
            break;
        share = (uint32_t)wi_max_u64(BATCH_MIN, count / (takers + 1));
        batch = make_batch(dir, entries + (count - share), share);
        if (!batch)
            break;
        count -= share;
        wi_mutex_lock(&copy->mu);
        wi_list_push_back(&copy->tasks_batches, &batch->task_link);
        copy->tasks_batches_count++;
        wi_cond_signal(&copy->work);
        wi_mutex_unlock(&copy->mu);
    }
    return count;
}

/* ---- entries ------------------------------------------------------------------------------- */

/* A directory was met. Returns it if the caller has to go down into it now. */
static struct copy_dir *meet_dir(struct copy_worker *worker, struct copy_dir *dir,
                                 const struct copy_entry *entry, bool may_descend)
{
    struct copy *copy = worker->copy;
    struct copy_dir *child;

    copy_add(&copy->files_total, 1);
    if (!(copy->flags & WEIR_COPY_RECURSIVE)) {
        copy_problem_text(worker, -EISDIR, 0, false,
                          "is a directory, and the copy is not recursive");
        copy_fail(worker, dir, entry->name, entry->copy_name, -EISDIR);
        copy_add(&copy->files_done, 1);
        return NULL;
    }
    child = copy_dir_create(dir, entry->name, entry->copy_name);
    if (!child) {
        copy_problem(worker, -ENOMEM, 0, false);
        copy_fail(worker, dir, entry->name, entry->copy_name, -ENOMEM);
        copy_add(&copy->files_done, 1);
        return NULL;
    }
    if (may_descend && too_many_dirs(copy))
        return child;
    copy_push_dir(copy, child);
    return NULL;
}

/* Copy one entry that may turn out to be a directory where the listing did not say. */
static void do_entry(struct copy_worker *worker, struct copy_dir *dir,
                     const struct copy_entry *entry)
{
    struct copy *copy = worker->copy;
    struct copy_entry known = *entry;
    struct statx st;
    bool have_stat = false;
    int rc = 0;

    if (entry->type == DT_UNKNOWN) {
        rc =
            copy->os->ops->statx(copy->os, dir->source_fd, entry->name,
                                 AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &st);
        if (rc < 0) {
            copy_problem(worker, rc, WEIR_OP_STAT, false);
        } else if (S_ISDIR(st.stx_mode)) {
            meet_dir(worker, dir, entry, false);
            return;
        } else {
            known.type = (uint8_t)IFTODT(st.stx_mode);
            have_stat = true;
        }
    }
    copy_add(&copy->files_total, 1);
    if (rc == 0)
        rc = copy_entry(worker, dir, &known, have_stat ? &st : NULL);
    if (rc < 0)
        copy_fail(worker, dir, entry->name, entry->copy_name, rc);
    copy_add(&copy->files_done, 1);
    copy_tick(worker);
}

static void do_entries(struct copy_worker *worker, struct copy_dir *dir,
                       const struct copy_entry *entries, uint32_t count)
{
    for (uint32_t i = 0; i < count && !copy_stopped(worker->copy); i++)
        do_entry(worker, dir, &entries[i]);
}

static int by_inode(const void *a, const void *b)
{
    const struct copy_entry *x = a;
    const struct copy_entry *y = b;

    return x->inode < y->inode ? -1 : x->inode > y->inode;
}

/* The files of a piece of listing: some to others, the rest by us. */
static void flush_batch(struct copy_worker *worker, struct copy_dir *dir)
{
    uint32_t count = worker->batch_count;

    worker->batch_count = 0;
    if (count == 0)
        return;
    if (dir->parent)
        qsort(worker->batch, count, sizeof(*worker->batch), by_inode);
    /* In rounds, so that a worker that falls idle meanwhile gets a share too. */
    for (uint32_t i = 0; i < count;) {
        uint32_t left = give_away(worker, dir, worker->batch + i, count - i);
        uint32_t now = (uint32_t)wi_min_u64(left, 2 * BATCH_MIN);

        count = i + left;
        do_entries(worker, dir, worker->batch + i, now);
        i += now;
    }
}

/* ---- listings -------------------------------------------------------------------------------- */

/* What a directory listing holds besides files: "." and "..". */
static bool is_dots(const char *name)
{
    return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

/*
 * What is in a source such as "a/." goes beside the other sources' copies. One that has the
 * name of such a copy is left out: the two would overwrite each other, in no order.
 */
static bool is_double(struct copy_worker *worker, struct copy_dir *dir, const char *name)
{
    struct copy *copy = worker->copy;

    if (dir->depth != 1 || copy->sources_count < 2 || strcmp(dir->copy_name, ".") != 0)
        return false;
    for (size_t i = 0; i < copy->sources_count; i++) {
        if (!copy->names[i] || strcmp(copy->names[i], name) != 0)
            continue;
        copy_problem_text(worker, -EEXIST, 0, false, "another source has the same last name");
        copy_fail(worker, dir, name, name, -EEXIST);
        copy_add(&copy->files_total, 1);
        copy_add(&copy->files_done, 1);
        return true;
    }
    return false;
}

/*
 * List one piece of the directory and copy what is in it. Returns 1 if there is more, 0 at
 * the end, or a negative code; *ret_child is where to go down first, or NULL.
 */
static int list_piece(struct copy_worker *worker, struct copy_dir *dir,
                      struct copy_dir **ret_child)
{
    const struct wi_os *os = worker->copy->os;
    int64_t got;

    *ret_child = NULL;
    if (dir->repositioned) {
        got = os->ops->lseek(os, dir->source_fd, dir->position, SEEK_SET);
        if (got < 0)
            return copy_problem(worker, (int)got, WEIR_OP_LIST, false);
        dir->repositioned = false;
    }
    do {
        got = os->ops->getdents(os, dir->source_fd, worker->list, COPY_LIST_SIZE);
    } while (got == -EINTR);
    if (got <= 0)
        return got == 0 ? 0 : copy_problem(worker, (int)got, WEIR_OP_LIST, false);

    for (int64_t at = 0; at < got && !*ret_child;) {
        const struct dirent64 *entry = (const void *)(worker->list + at);
        struct copy_entry met = { entry->d_ino, entry->d_name, entry->d_name, entry->d_type };

        at += entry->d_reclen;
        dir->position = entry->d_off;
        if (is_dots(entry->d_name) || is_double(worker, dir, entry->d_name))
            continue;
        if (met.type == DT_DIR) {
            *ret_child = meet_dir(worker, dir, &met, true);
            if (*ret_child)
                dir->repositioned = true;
        } else {
            WEIR_ASSERT(worker->batch_count < ENTRIES_MAX);
            worker->batch[worker->batch_count++] = met;
        }
    }
    flush_batch(worker, dir);
    return 1;
}

/* The root's listing: the sources. Their types are not known yet. */
static int list_sources(struct copy_worker *worker, struct copy_dir *root)
{
    struct copy *copy = worker->copy;
    size_t end = wi_min_u64(copy->sources_count, root->next_source + SOURCES_AT_ONCE);

    for (; root->next_source < end; root->next_source++) {
        size_t i = root->next_source;
        struct copy_entry met = { i, copy->sources[i], copy->names[i], DT_UNKNOWN };

        if (met.copy_name)
            worker->batch[worker->batch_count++] = met;
    }
    flush_batch(worker, root);
    return root->next_source < copy->sources_count;
}

/* List a directory to its end, and those below that could not be put on the stack. */
static void do_dir(struct copy_worker *worker, struct copy_dir *dir)
{
    struct copy *copy = worker->copy;

    while (dir) {
        struct copy_dir *child = NULL;
        struct copy_dir *outer;
        bool root = dir->parent == NULL;
        bool pinned = false;
        int rc = 0;

        if (!copy_stopped(copy)) {
            if (root || dir->opened)
                rc = copy_dir_pin(worker, dir);
            else
                rc = copy_dir_begin(worker, dir);
            pinned = rc == 0;
            if (pinned) {
                do {
                    rc = root ? list_sources(worker, dir) : list_piece(worker, dir, &child);
                } while (rc == 1 && !child && !copy_stopped(copy));
            }
            if (rc < 0)
                copy_fail(worker, dir, NULL, NULL, rc);
            if (pinned)
                copy_dir_unpin(copy, dir);
        }
        if (child) {
            child->outer = dir;
            dir = child;
            continue;
        }
        outer = dir->outer;
        copy_dir_unref(worker, dir);
        copy_tick(worker);
        dir = outer;
    }
}

static void do_batch(struct copy_worker *worker, struct copy_batch *batch)
{
    struct copy_dir *dir = batch->dir;

    if (!copy_stopped(worker->copy)) {
        int rc = copy_dir_pin(worker, dir);

        if (rc == 0) {
            do_entries(worker, dir, batch->entries, batch->count);
            copy_dir_unpin(worker->copy, dir);
        } else {
            copy_fail(worker, dir, NULL, NULL, rc);
        }
    }
    free(batch);
    copy_dir_unref(worker, dir);
}

void copy_walk(struct copy_worker *worker)
{
    struct copy *copy = worker->copy;

    wi_mutex_lock(&copy->mu);
    while (!copy->finished) {
        struct wi_list *link = wi_list_pop_front(&copy->tasks_batches);
        bool batch = link != NULL;

        if (!link)
            link = wi_list_pop_front(&copy->tasks_dirs);
        if (!link) {
            copy_add(&copy->idle, 1);
            wi_cond_wait(&copy->work, &copy->mu);
            atomic_fetch_sub_explicit(&copy->idle, 1, memory_order_relaxed);
            continue;
        }
        if (batch)
            copy->tasks_batches_count--;
        else
            copy->tasks_dirs_count--;
        wi_mutex_unlock(&copy->mu);
        if (batch)
            do_batch(worker, WI_CONTAINER_OF(link, struct copy_batch, task_link));
        else
            do_dir(worker, WI_CONTAINER_OF(link, struct copy_dir, task_link));
        wi_mutex_lock(&copy->mu);
    }
    wi_mutex_unlock(&copy->mu);
}
